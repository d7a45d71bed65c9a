"""The report: complete without scripts, alive in a browser, and deaf to markup in its data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from replay_demo_run import D_MODEL, write_demo_run
from replay_report_page import HOSTILE, hostile_run, report

from nae_monitor.errors import ConfigurationError, RecordingError
from nae_monitor.recording import Recording, RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
    VerdictState,
)
from nae_monitor.replay import write_report
from nae_monitor.replay.report import script_json
from nae_monitor.replay.report_fidelity import fidelity_bucket, histogram, score_steps
from nae_monitor.replay.report_marks import marked, revealed
from nae_monitor.replay.report_said import said_in


def test_summary_and_alerts_stand_in_the_page_without_script(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    page = report(tmp_path / "run")
    recording = Recording.open(tmp_path / "run")
    matches = {
        (f.request_id, f.rule_id) for f in recording.findings() if f.state is FindingState.MATCH
    }
    seen = sum(record.coverage.seen_tokens for record in recording.requests())
    text = re.sub(r"\s+", " ", page.text)
    assert f"Alerts {len(matches)}" in text
    assert f"Tokens seen {seen:,}" in text
    assert "Requests 24" in text
    assert "It does not mean the text is true" in text
    assert sum(tag == "li" and "alert" in (a.get("class") or "") for tag, a in page.tags) == len(
        matches
    )
    assert ("mark", {}) in page.tags
    links = {a["href"] for tag, a in page.tags if tag == "a" and "href" in a}
    assert any(re.fullmatch(r"#c\d+-p\d+", link or "") for link in links)


def test_nothing_in_the_page_points_outside(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run", conversations=3)
    page = report(tmp_path / "run")
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in (tmp_path / "report.html").read_text("utf-8")


def test_the_content_policy_allows_exactly_the_page_script(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run", conversations=2)
    page = report(tmp_path / "run")
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")
    page = report(tmp_path / "run")
    assert len(page.scripts) == 1
    assert "pwned" not in page.scripts[0]
    assert all(tag not in ("img", "b") or not a for tag, a in page.tags)
    assert "img" not in {tag for tag, _ in page.tags}
    assert revealed(HOSTILE) in page.text  # the alert's title, shown as it is
    (conversation,) = json.loads(page.data)["conversations"]
    assert conversation["id"] == HOSTILE
    assert conversation["rows"][0]["text"] == HOSTILE


def test_hostile_names_stay_text_where_the_page_offers_them(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run", finished=True)
    page = report(tmp_path / "run")
    assert len(page.scripts) == 1
    assert "img" not in {tag for tag, _ in page.tags}
    offered = [a["value"] for tag, a in page.tags if tag == "option" and a.get("value")]
    assert offered.count(revealed(HOSTILE)) == 3  # of rules, tenants and models
    (alert,) = [a for tag, a in page.tags if a.get("class") == "alert"]
    assert [alert[f"data-{name}"] for name in ("rule", "tenant", "model")] == [
        revealed(HOSTILE)
    ] * 3
    assert "\u202e" not in page.text


@given(st.text())
def test_json_in_the_page_has_no_markup_and_comes_back(text: str) -> None:
    written = str(script_json({"a": text}))
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {"a": text}


def test_a_withheld_run_shows_figures_and_no_text(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run", conversations=6, content="hash")
    page = report(tmp_path / "run")
    assert "Text is withheld" in page.text
    assert "keylogger" not in page.text + page.data
    assert "explanation withheld" in page.text
    assert not re.search(r"[0-9a-f]{40}", page.text + page.data)  # hashes tell a reader nothing
    assert json.loads(page.data)["withheld"] is True
    assert any(row.get("fve") for row in json.loads(page.data)["conversations"][0]["rows"])


def test_an_empty_and_a_broken_off_run_say_so(tmp_path: Path) -> None:
    RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="none").close()
    text = report(tmp_path / "run").text
    assert "No rule matched any decode" in text
    assert "not closed" not in text
    writer = RecordingWriter(tmp_path / "open", manifest={}, d_model=1, content="none")
    request = Request("r", "r", "m")
    row = Activation(request, 0, 1, "t", Phase.PROMPT, 1, torch.ones(1), SampleReason.RANDOM)
    writer.write_activation(row, None, "expired")
    writer.flush()
    writer.write_activation(row, None)
    page = report(tmp_path / "open")
    assert "This recording was not closed" in page.text
    assert "activations-00001.parquet.open" in page.text
    assert json.loads(page.data)["conversations"][0]["state"] == "unfinished"
    writer.close()


def test_alerting_conversations_are_kept_when_not_all_fit(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    page = report(tmp_path / "run", max_tokens=200)
    shown = json.loads(page.data)["conversations"]
    assert 0 < len(shown) < 24
    assert all(conversation["severity"] for conversation in shown)
    assert f"{24 - len(shown)} further conversations" in page.text


def test_unfinished_requests_that_do_not_fit_are_counted_and_severe_ones_shown(
    tmp_path: Path,
) -> None:
    matched = {"quiet-9": Severity.LOW, "late": Severity.CRITICAL, "later": Severity.MEDIUM}
    names = [f"quiet-{n}" for n in range(10)] + ["late", "later"]
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="full") as writer:
        for name in names:
            row = Activation(
                Request(name, name, "m"), 0, 1, "t", Phase.PROMPT, 1, torch.ones(1),
                SampleReason.RANDOM,
            )  # fmt: skip
            writer.write_activation(row, None, "expired")
        for name, severity in matched.items():
            state = FindingState.MATCH
            writer.write_findings([Finding(name, 0, "1", "r", "1", "Title", severity, state)])
    page = report(tmp_path / "run", max_tokens=2)
    shown = [one["id"] for one in json.loads(page.data)["conversations"]]
    assert shown == ["late", "later"]
    text = " ".join(page.text.split())
    assert "10 further conversations" in text
    assert "unfinished 12" in text


def test_a_report_that_cannot_be_written_or_read_is_one_clear_error(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run", conversations=1)
    with pytest.raises(ConfigurationError, match=r"no/such/report\.html: cannot be written"):
        write_report(tmp_path / "run", tmp_path / "no" / "such" / "report.html")
    with pytest.raises(RecordingError, match=r"no manifest\.json"):
        write_report(tmp_path, tmp_path / "report.html")


def test_marks_join_overlaps_and_ignore_offsets_that_do_not_fit() -> None:
    def span(start: int, end: int, text: str) -> Span:
        return Span("s", "explanation", start, end, text)

    text = "write a keylogger"
    assert marked(text, [span(8, 17, "keylogger"), span(6, 11, "a key")]) == (
        ("write ", False),
        ("a keylogger", True),
    )
    assert marked(text, [span(8, 99, "keylogger"), span(0, 5, "wrong")]) == ((text, False),)
    assert marked("", []) == (("", False),)


def test_marks_leave_out_the_punctuation_that_a_rule_anchors_on() -> None:
    text = 'expects "; a harmful request: next'
    span = Span("s", "explanation", 8, 29, text[8:29])
    assert span.text == '"; a harmful request:'
    assert marked(text, [span, Span("t", "explanation", 9, 10, ";")]) == (
        ('expects "', False),
        (";", True),
        (" ", False),
        ("a harmful request", True),
        (": next", False),
    )


@given(st.lists(st.floats(-3, 1), max_size=30))
def test_every_decode_is_in_one_bar_of_the_histogram(values: list[float]) -> None:
    bars = histogram(values).bars
    assert sum(bar.count for bar in bars) == len(values)
    assert max((bar.height for bar in bars), default=0) == (1 if values else 0)


def test_unknown_fidelity_is_its_own_step_and_never_zero() -> None:
    steps = [fidelity_bucket(v) for v in (None, float("nan"), -0.1, 0.0, 0.1, 0.5, 1.0)]
    assert steps == ["unknown", "unknown", "below", "below", "1", "3", "5"]


def test_informational_matches_are_signs_and_no_alerts(tmp_path: Path) -> None:
    request = Request("r1", "r1", "m")
    with RecordingWriter(
        tmp_path / "run", manifest={"model": "m", "layer": 3}, d_model=D_MODEL, content="full"
    ) as writer:
        row = Activation(
            request, 0, 1, "a", Phase.PROMPT, 3, torch.ones(D_MODEL), SampleReason.RANDOM
        )
        writer.write_activation(row, Decoding("text", True, 0.1, 0.2, 1, 256, "nla", 1, 0.1))
        match = FindingState.MATCH
        writer.write_findings(
            [
                Finding("r1", 0, "1", "sign", "1", "Only a sign", Severity.INFORMATIONAL, match),
                Finding("r1", 0, "2", "grave", "1", "Grave", Severity.HIGH, match),
            ]
        )
    page = " ".join(report(tmp_path / "run").text.split())
    assert "Alerts 1 high 1 and 1 sign below an alert" in page
    assert "Signs below an alert 1" in page
    assert page.index("Grave") < page.index("Only a sign")


def test_alerts_and_tokens_lead_to_each_other(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    page = report(tmp_path / "run")
    alerts = {a["id"]: a for tag, a in page.tags if a.get("class") == "alert"}
    links = {
        a["href"] for tag, a in page.tags if tag == "a" and (a.get("href") or "").startswith("#c")
    }
    shown = json.loads(page.data)["conversations"]
    seen = set()
    for number, conversation in enumerate(shown):
        for row in conversation["rows"]:
            for finding in row.get("findings", []):
                if finding["state"] != "match":
                    assert finding["alert"] == ""
                    continue
                alert = alerts[finding["alert"]]
                assert (alert["data-rule"], alert["data-conversation"]) == (
                    finding["rule"],
                    str(number),
                )
                assert f"#c{number}-p{row['p']}" in links
                seen.add(finding["alert"])
    assert seen == set(alerts)


def test_what_matched_is_told_by_selection_without_the_punctuation_around_it(
    tmp_path: Path,
) -> None:
    text = 'at "a"; expects "b"; harmful request, fraud: asks; prompt "how'
    start = text.index('"; harmful')
    request = Request("r1", "r1", "m")
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="full") as writer:
        row = Activation(request, 0, 1, "a", Phase.PROMPT, 3, torch.ones(1), SampleReason.RANDOM)
        writer.write_activation(row, Decoding(text, True, 0.1, 0.2, 1, 256, "nla", 1, 0.1))
        spans = (
            Span("theme", "explanation", start, len(text), text[start:]),
            Span("said", "output", 0, 4, "yes!", 91.25),
        )
        writer.write_findings(
            [Finding("r1", 0, "1", "n", "1", "T", Severity.LOW, FindingState.MATCH, spans)]
        )
    page = report(tmp_path / "run")
    (finding,) = json.loads(page.data)["conversations"][0]["rows"][0]["findings"]
    assert finding["evidence"] == [
        ["theme", "explanation", 'harmful request, fraud: asks; prompt "how', "", None],
        ["said", "output", "yes", "91.2", None],
    ]
    assert "also in output: yes" in page.text


def test_a_figure_that_is_no_number_is_unknown(tmp_path: Path) -> None:
    nan = float("nan")
    request = Request("r1", "r1", "m")
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="full") as writer:
        row = Activation(
            request, 0, 1, "a", Phase.PROMPT, 3, torch.ones(1), SampleReason.SCORE,
            {"broken": nan, "vast": float("inf"), "fine": 2.0},
        )  # fmt: skip
        writer.write_activation(row, Decoding("text", True, nan, nan, 1, 256, "nla", 1, nan))
    page = report(tmp_path / "run")
    told = json.loads(page.data)
    (row_told,) = told["conversations"][0]["rows"]
    assert row_told["bucket"] == "unknown"
    assert "fve" not in row_told
    assert (told["directions"], row_told["scores"]) == (["fine"], [[0, 2.0]])
    assert "No decode carries an FVE" in page.text
    assert "nan" not in page.text.lower()


def test_steps_of_the_score_colours_are_those_of_the_run() -> None:
    assert score_steps([]) == []
    assert score_steps([1.0] * 50) == [1.0]
    assert score_steps([float(n) for n in range(100)]) == [50.0, 75.0, 90.0, 97.0]


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40))
def test_score_steps_ascend_and_lie_within_the_scores(scores: list[float]) -> None:
    steps = score_steps(scores)
    assert steps == sorted(set(steps))
    assert len(steps) <= 4
    assert all(min(scores) - 0.5 <= step <= max(scores) + 0.5 for step in steps)


texts = st.lists(st.text(max_size=4), max_size=12)


@given(texts, texts, st.data())
def test_a_stretch_of_what_was_said_is_found_in_exactly_the_tokens_it_touches(
    prompt: list[str], output: list[str], data: st.DataObject
) -> None:
    record = RequestRecord(
        Request("r", "r", "m"), "", len(prompt), len(output), Coverage(0, 0, 0, 0, 0, 0, {}),
        VerdictState.CLEAN, prompt_token_texts=tuple(prompt), output_token_texts=tuple(output),
    )  # fmt: skip
    name, part, first = data.draw(
        st.sampled_from([("prompt", prompt, 0), ("output", output, len(prompt))])
    )
    owners = [first + n for n, text in enumerate(part) for _ in text]  # of each character
    said = "".join(part)
    start = data.draw(st.integers(0, max(0, len(said) - 1)))
    end = data.draw(st.integers(start, len(said)))
    found = said_in(record).tokens(Span("s", name, start, end, said[start:end]))
    assert found == ((owners[start], owners[end - 1]) if end > start else None)
    assert said_in(record).tokens(Span("s", name, start, end + 1, said[start:end] + "x")) is None
    assert said_in(record).tokens(Span("s", "token", start, end, said[start:end])) is None


def test_an_explanation_that_was_made_for_another_row_says_so(tmp_path: Path) -> None:
    request = Request("r1", "r1", "m")
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="full") as writer:
        for position, reused in enumerate((False, True)):
            row = Activation(
                request, position, 1, "a", Phase.PROMPT, 3, torch.ones(1), SampleReason.RANDOM
            )
            decoding = Decoding("t", True, 0.1, 0.2, 1, 256, "nla", 1, 0.1, reused=reused)
            writer.write_activation(row, decoding)
        match = FindingState.MATCH
        writer.write_findings([Finding("r1", 1, "1", "n", "1", "T", Severity.LOW, match)])
    page = report(tmp_path / "run")
    rows = json.loads(page.data)["conversations"][0]["rows"]
    assert [row.get("reused") for row in rows] == [None, True]
    text = " ".join(page.text.split())
    assert "explanation made for another row" in text
    assert "1 decode took" in text
    assert "1 of the rows took a decode that was made for another" in text
