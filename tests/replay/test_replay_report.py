"""The report: complete without scripts, alive in a browser, and deaf to markup in its data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from replay_demo_run import D_MODEL, write_demo_run

from nae_monitor.errors import ConfigurationError, RecordingError
from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.records import (
    Activation,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
)
from nae_monitor.replay import write_report
from nae_monitor.replay.report import script_json
from nae_monitor.replay.report_marks import marked, revealed
from nae_monitor.replay.report_view import fidelity_bucket, histogram

HOSTILE = (
    "\u202e</script><script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"><!--<script> &lt;b&gt; \u2028 ${x} {{ 7*7 }}"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page(HTMLParser):
    """Tags, executable scripts, the page's data and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.data = ""
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag in ("script", "style"):
            self._inside = "data" if attributes.get("type") == "application/json" else tag
            if self._inside == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "data":
            self.data += data
        elif not self._inside:
            self.text += data


def report(run: Path, **options: int) -> Page:
    write_report(run, run.parent / "report.html", **options)
    return Page((run.parent / "report.html").read_text("utf-8"))


def hostile_run(path: Path) -> None:
    """Every text that can reach the page is hostile."""
    request = Request(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    with RecordingWriter(
        path,
        manifest={"model": HOSTILE, "layer": 3, "nla_id": HOSTILE, "rules_sha256": HOSTILE},
        d_model=D_MODEL,
        content="full",
    ) as writer:
        row = Activation(
            request, 0, 1, HOSTILE, Phase.PROMPT, 3, torch.ones(D_MODEL), SampleReason.RANDOM
        )
        writer.write_activation(row, Decoding(HOSTILE, True, 0.1, 0.2, 1, 256, HOSTILE, 1, 0.1))
        writer.write_activation(row, None, HOSTILE)
        spans = (
            Span("s", "explanation", 0, 9, HOSTILE[:9]),
            Span("s", "output", 0, len(HOSTILE), HOSTILE),
        )
        for state in (FindingState.MATCH, FindingState.UNDECIDED):
            writer.write_findings(
                [
                    Finding(
                        HOSTILE, 0, HOSTILE, HOSTILE, HOSTILE, HOSTILE, Severity.HIGH, state,
                        spans, (HOSTILE,), None, (HOSTILE,),
                    )
                ]
            )  # fmt: skip


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
    assert any(row["fve"] for row in json.loads(page.data)["conversations"][0]["rows"])


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


def dom_in_browser(page: Path, profile: Path, fragment: str = "") -> str:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --dump-dom "
        "--disable-background-networking --disable-component-update --disable-sync "
        "--window-size=1400,9000 --virtual-time-budget=4000"
    )
    done = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", page.as_uri() + fragment],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


def test_a_browser_draws_the_conversations_and_pins_the_linked_token(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    page = report(tmp_path / "run")
    link = next(a["href"] for tag, a in page.tags if (a.get("href") or "").startswith("#c0-p"))
    html = dom_in_browser(tmp_path / "report.html", tmp_path / "profile", link or "")
    drawn = Page(html)
    assert sum(a.get("class") == "conv" for _, a in drawn.tags) == 24
    tokens = [a for _, a in drawn.tags if a.get("role") == "button" and "data-d" in a]
    rows = sum(1 for _ in Recording.open(tmp_path / "run").activations())
    assert len(tokens) == rows
    (pinned,) = [a for a in tokens if a.get("aria-pressed") == "true"]
    assert f"#{pinned['id']}" == link
    assert pinned["tabindex"] == "0"
    inspector = html[html.index('id="inspector"') : html.index("</aside>")]
    assert "Unpin" in inspector
    assert "<mark>" in inspector
    assert "keylogger" in drawn.text


def test_a_browser_runs_no_script_that_came_with_the_data(tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")
    report(tmp_path / "run")
    html = dom_in_browser(tmp_path / "report.html", tmp_path / "profile", "#c0-p0")
    page = Page(html)
    assert len(page.scripts) == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert "<title>pwned" not in html
    assert "\u202e" not in html  # its right-to-left override is written out instead
    assert "⟨U+202E⟩" in html
    assert page.text.count("onerror") > 3  # shown, as text, in alert, conversation and details


def driven(page: Path, script: str) -> Path:
    """A copy of the page in which ``script`` does what a reader would; the policy is left out."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    copy = page.with_name("driven.html")
    copy.write_text(html.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    return copy


def test_the_rule_filter_leaves_the_conversations_in_which_the_rule_matched(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    page = report(tmp_path / "run")
    matched = {
        c["id"]: {f["rule"] for r in c["rows"] for f in r["findings"] if f["state"] == "match"}
        for c in json.loads(page.data)["conversations"]
    }
    rule = sorted(set().union(*matched.values()))[0]
    expected = {name for name, rules in matched.items() if rule in rules}
    choose = (
        f"const s = document.getElementById('f-rule'); s.value = {json.dumps(rule)};"
        "s.dispatchEvent(new Event('input', {bubbles: true}));"
    )
    html = dom_in_browser(driven(tmp_path / "report.html", choose), tmp_path / "profile")
    shown = [a for _, a in Page(html).tags if a.get("class") == "conv" and "hidden" not in a]
    assert 0 < len(expected) < 24
    assert {(a["aria-label"] or "").removeprefix("Conversation ") for a in shown} == expected


def test_a_question_mark_opens_the_list_of_keys(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    report(tmp_path / "run")
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '?', bubbles: true}));"
    html = dom_in_browser(driven(tmp_path / "report.html", press), tmp_path / "profile")
    (dialog,) = [a for tag, a in Page(html).tags if tag == "dialog"]
    assert "open" in dialog


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
