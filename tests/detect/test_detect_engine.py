import dataclasses
import datetime
from pathlib import Path

import pytest
from detect_support import HEADER, SIMPLE, LetterEncoder, activation, decoding, rules_of, transcript

from nae_monitor.detect import Judge, load_rules
from nae_monitor.detect.evaluation import LOW_FIDELITY_TAG
from nae_monitor.detect.views import MAX_FIELD_CHARS, MAX_SPAN_CHARS
from nae_monitor.errors import ConfigurationError
from nae_monitor.health import CIRCUIT_LIMIT, Health
from nae_monitor.records import Finding, FindingState, Phase, Request, Severity

SEMANTIC = (
    HEADER
    + """
detection:
  words: {keywords: {any: [hide]}}
  meaning: {semantic: {exemplars: [hide the truth], threshold: 0.95}}
  said: {field: output, keywords: {any: [sorry]}}
  condition: %s
"""
)


def judged(tmp_path: Path, rule: str, text: str, **more: object) -> tuple[Finding, ...]:
    prompt, output = more.pop("prompt", ""), more.pop("output", "")
    fve, encoder, health = more.pop("fve", 0.6), more.pop("encoder", None), more.pop("health", None)
    judge = Judge(rules_of(tmp_path, rule), encoder, health)  # type: ignore[arg-type]
    return judge.judge(
        activation(**more),  # type: ignore[arg-type]
        decoding(text, fve),  # type: ignore[arg-type]
        transcript(prompt, output),  # type: ignore[arg-type]
    )


def test_a_match_carries_rule_place_and_spans(tmp_path: Path) -> None:
    (found,) = judged(tmp_path, SIMPLE, "It will Hi\u200bde it", position=33)
    assert (found.rule_name, found.position, found.state) == ("a_rule", 33, FindingState.MATCH)
    assert (found.severity, found.risk_score, found.fve) == (Severity.MEDIUM, 40, 0.6)
    (span,) = found.spans
    assert (span.selection, span.field, span.text) == ("hide_kw", "explanation", "Hi\u200bde")
    assert (span.start, span.end, span.score) == (8, 13, None)


def test_no_match_makes_no_finding(tmp_path: Path) -> None:
    assert judged(tmp_path, SIMPLE, "nothing here") == ()


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_explanation_is_undecided(tmp_path: Path, text: str) -> None:
    (found,) = judged(tmp_path, SIMPLE, text)
    assert found.state is FindingState.UNDECIDED
    assert found.undecided == ("hide_kw: the explanation is empty",)


@pytest.mark.parametrize("field", ["prompt", "output"])
def test_a_withheld_text_is_undecided_and_not_unmatched(tmp_path: Path, field: str) -> None:
    health = Health()
    rule = SIMPLE.replace("{keywords", f"{{field: {field}, keywords")
    (found,) = judged(tmp_path, rule, "x", health=health, **{field: None})
    assert found.undecided == (f"hide_kw: the {field} was withheld",)
    assert health.counters()["rules.undecided"] == 1


def test_an_undecided_input_that_cannot_matter_is_not_undecided(tmp_path: Path) -> None:
    rule = SEMANTIC % "words and said"
    rule = rule.replace(
        "  meaning: {semantic: {exemplars: [hide the truth], threshold: 0.95}}\n", ""
    )
    assert judged(tmp_path, rule, "nothing here", output=None) == ()


def test_without_an_encoder_a_semantic_rule_is_undecided(tmp_path: Path) -> None:
    (found,) = judged(tmp_path, SEMANTIC % "1 of them", "some words")
    assert found.undecided == ("meaning: no sentence encoder",)


def test_the_encoder_is_left_alone_where_words_decide(tmp_path: Path) -> None:
    encoder = LetterEncoder()
    (found,) = judged(tmp_path, SEMANTIC % "1 of them", "they hide", encoder=encoder)
    assert found.state is FindingState.MATCH
    assert judged(tmp_path, SEMANTIC % "words and meaning and said", "not", encoder=encoder) == ()
    assert set(encoder.seen) == {"hide the truth"}


def test_the_encoder_decides_where_words_do_not(tmp_path: Path) -> None:
    rule = SEMANTIC % "1 of them"
    (found,) = judged(tmp_path, rule, "so: the truth ehid.", encoder=LetterEncoder())
    assert [(s.selection, s.text) for s in found.spans] == [("meaning", "so: the truth ehid")]
    assert judged(tmp_path, rule, "zz zz", encoder=LetterEncoder()) == ()


def test_selections_under_not_give_no_spans(tmp_path: Path) -> None:
    rule = SIMPLE.replace(
        "condition: hide_kw", "a: {keywords: {any: [plan]}}, condition: a and not hide_kw"
    )
    (found,) = judged(tmp_path, rule, "plan")
    assert [span.selection for span in found.spans] == ["a"]
    assert judged(tmp_path, rule, "plan to hide") == ()


@pytest.mark.parametrize(
    ("scope", "inside", "outside"),
    [
        ("{phase: [prompt]}", {"phase": Phase.PROMPT}, {"phase": Phase.COMPLETION}),
        ("{min_token_index: 10}", {"position": 10}, {"position": 9}),
        ("{max_norm: 300}", {"norm": 300.0}, {"norm": 301.0}),
        ("{layers: [20]}", {"layer": 20}, {"layer": 21}),
        ("{models: ['smollm2-*']}", {}, {"request": Request("r", "r", "qwen")}),
    ],
)
def test_scope_decides_what_a_rule_looks_at(
    tmp_path: Path, scope: str, inside: dict[str, object], outside: dict[str, object]
) -> None:
    rule = SIMPLE + f"scope: {scope}\n"
    assert judged(tmp_path, rule, "hide", **inside)
    assert judged(tmp_path, rule, "hide", **outside) == ()


@pytest.mark.parametrize(
    ("gate", "fve", "severity", "risk"),
    [
        ("below: drop, unscored: drop", 0.5, "medium", 40),
        ("below: downgrade, unscored: drop", 0.4999, "low", 21),
        ("below: tag, unscored: drop", 0.1, "medium", 40),
        ("below: drop, unscored: downgrade", None, "low", 21),
        ("below: drop, unscored: pass", None, "medium", 40),
        ("below: drop, unscored: pass", float("nan"), None, None),
        ("below: drop, unscored: pass", 0.1, None, None),
        ("below: tag, unscored: drop", None, None, None),
    ],
)
def test_the_fidelity_gate_weighs_a_match(
    tmp_path: Path, gate: str, fve: float | None, severity: str | None, risk: int | None
) -> None:
    health = Health()
    rule = SIMPLE + f"fidelity: {{metric: fve, min: 0.5, {gate}}}\n"
    found = judged(tmp_path, rule, "hide", fve=fve, health=health)
    if severity is None:
        assert found == ()
        dropped = "rules.dropped_unscored" if fve is None else "rules.dropped_low_fidelity"
        assert health.counters()[dropped] == 1
        assert judged(tmp_path, rule, "nothing", fve=fve, health=health) == ()
        assert health.counters()[dropped] == 1  # only what would have matched is counted
    else:
        assert [(f.severity.value, f.risk_score) for f in found] == [(severity, risk)]
        assert (LOW_FIDELITY_TAG in found[0].tags) == ("tag" in gate and fve == 0.1)


def test_an_informational_rule_cannot_be_downgraded_further(tmp_path: Path) -> None:
    rule = SIMPLE.replace("severity: medium\nrisk_score: 40", "severity: informational")
    rule += "fidelity: {metric: cosine, min: 0.9}\n"
    (found,) = judged(tmp_path, rule, "hide")
    assert (found.severity, found.risk_score) == (Severity.INFORMATIONAL, None)


def test_an_exception_takes_the_match_away_until_it_expires(tmp_path: Path) -> None:
    rule = SIMPLE.replace(
        "condition: hide_kw",
        "lab: {field: request.tenant, keywords: {any: [lab]}}, condition: hide_kw",
    )
    rule += "exceptions: [{name: lab, when: lab, reason: contract, expires: 2026-11-22}]\n"
    lab = Request("r", "r", "m", tenant="lab")
    last = datetime.datetime(2026, 11, 22, 23, 59, tzinfo=datetime.UTC)

    def at(moment: datetime.datetime) -> int:
        return int(moment.timestamp() * 1e9)

    assert judged(tmp_path, rule, "hide", request=lab, captured_unix_ns=at(last)) == ()
    assert judged(tmp_path, rule, "hide", request=lab) == ()
    later = at(last + datetime.timedelta(minutes=2))
    assert judged(tmp_path, rule, "hide", request=lab, captured_unix_ns=later)
    assert judged(tmp_path, rule, "hide", captured_unix_ns=at(last))  # no tenant: not the lab


def test_request_attributes_and_the_token_are_fields(tmp_path: Path) -> None:
    rule = SIMPLE.replace(
        "condition: hide_kw",
        "a: {field: request.app, keywords: {any: [shop]}},"
        " t: {field: token, keywords: {any: [the]}}, condition: a and t and not hide_kw",
    )
    request = Request("r", "r", "m", attributes={"app": "shop"})
    (found,) = judged(tmp_path, rule, "x", request=request)
    assert [(s.field, s.text) for s in found.spans] == [("request.app", "shop"), ("token", "the")]


def test_spans_of_a_paragraph_point_into_the_whole_explanation(tmp_path: Path) -> None:
    rule = SIMPLE.replace("{keywords", "{field: explanation.final, keywords")
    text = "hide first\n\nthen seek\n\nthen hide\n"
    (found,) = judged(tmp_path, rule, text)
    (span,) = found.spans
    assert (span.field, span.start, text[span.start : span.end]) == ("explanation", 28, "hide")
    head = SIMPLE.replace("{keywords", "{field: explanation.head, keywords")
    assert judged(tmp_path, head, text)[0].spans[0].start == 0
    assert judged(tmp_path, head, "a\n\nhide") == ()


def test_a_field_beyond_the_limit_is_undecided_unless_its_beginning_matches(tmp_path: Path) -> None:
    rule = SIMPLE.replace("{keywords", "{field: prompt, keywords")
    filler = "x " * (MAX_FIELD_CHARS // 2)
    (late,) = judged(tmp_path, rule, "x", prompt=filler + "hide")
    assert late.state is FindingState.UNDECIDED
    (early,) = judged(tmp_path, rule, "x", prompt="hide " + filler)
    assert early.state is FindingState.MATCH


def test_long_spans_show_their_beginning_and_keep_their_offsets(tmp_path: Path) -> None:
    rule = SIMPLE.replace("keywords: {any: [hide]}", "regex: ['ab+']")
    (found,) = judged(tmp_path, rule, "a" + "b" * 5000)
    assert (found.spans[0].end, len(found.spans[0].text)) == (5001, MAX_SPAN_CHARS)


def test_a_rule_that_fails_is_undecided_and_the_others_are_judged(tmp_path: Path) -> None:
    class Broken:
        cost = 0

        def find(self, text: str) -> list[object]:
            raise RuntimeError(text)

    second = SIMPLE.replace("6b1f", "7b1f").replace("a_rule", "b_rule")
    rules = rules_of(tmp_path, SIMPLE, second)
    broken = dataclasses.replace(rules.rules[0].selections["hide_kw"], matcher=Broken())
    first = dataclasses.replace(rules.rules[0], selections={"hide_kw": broken})
    health = Health()
    judge = Judge(dataclasses.replace(rules, rules=(first, rules.rules[1])), None, health)
    for _ in range(CIRCUIT_LIMIT + 1):
        found = judge.judge(activation(), decoding("hide"), transcript())
        assert [f.state for f in found] == [FindingState.UNDECIDED, FindingState.MATCH]
    assert health.counters()["failed.detect.rule.a_rule.RuntimeError"] == CIRCUIT_LIMIT


def test_disabled_rules_are_not_judged(tmp_path: Path) -> None:
    assert judged(tmp_path, SIMPLE + "enabled: false\n", "hide") == ()


def test_findings_come_in_order_of_rule_id_and_do_not_depend_on_history(tmp_path: Path) -> None:
    texts = [SIMPLE.replace("6b1f", f"{i}b1f").replace("a_rule", f"r{i}") for i in (7, 3, 5)]
    rules = rules_of(tmp_path, *texts, (SEMANTIC % "1 of them").replace("6b1f", "1b1f"))
    inputs = ["they hide", "hide the truth", "zz", "the truth hide. they hide"]

    def run(order: list[str]) -> dict[str, tuple[Finding, ...]]:
        judge = Judge(rules, LetterEncoder())
        return {t: judge.judge(activation(), decoding(t), transcript()) for t in order}

    assert run(inputs) == run(inputs[::-1])
    assert [f.rule_name for f in run(inputs)["they hide"]] == ["a_rule", "r3", "r5", "r7"]


def test_an_encoder_that_cannot_take_the_exemplars_stops_the_start(tmp_path: Path) -> None:
    class Wrong:
        def encode(self, texts: list[str]) -> object:
            raise OSError("gone")

    with pytest.raises(ConfigurationError, match="exemplars"):
        Judge(rules_of(tmp_path, SEMANTIC % "1 of them"), Wrong())


def test_judging_counts_what_it_did(tmp_path: Path) -> None:
    health = Health()
    judged(tmp_path, SIMPLE, "hide", health=health)
    assert health.counters() == {"rules.judged": 1, "rules.matched": 1}


def test_no_text_of_the_conversation_reaches_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Leaky(LetterEncoder):
        def encode(self, texts: list[str]) -> object:
            if self.seen:
                raise RuntimeError(texts[0])
            return super().encode(texts)

    judged(tmp_path, SEMANTIC % "1 of them", "private words here", encoder=Leaky())
    assert caplog.records
    assert "private" not in caplog.text


def test_builtin_is_a_place_to_load_from() -> None:
    assert len(load_rules(["builtin"])) >= 5
