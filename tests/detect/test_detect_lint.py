"""Each lint code on a rule that deserves it and on one that does not; ignores, fixes, SARIF."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from detect_support import HEADER, LetterEncoder

from nae_monitor.detect.lint import CODES, Diagnostic, LintOptions, fix, lint, to_sarif
from nae_monitor.detect.lint.conditions import check_stop
from nae_monitor.detect.lint.documents import check_count
from nae_monitor.detect.lint.subject import LintSubject, benign_texts
from nae_monitor.errors import RuleError
from nae_monitor.strict_yaml import read_documents

TESTS = """\
tests:
  - {explanation: they conceal it, expect: match}
  - {explanation: nothing, expect: no_match}
"""
TODAY = datetime.date(2026, 11, 22)


def rule(selections: str, condition: str = "a", more: str = "", tests: str = TESTS) -> str:
    return f"{HEADER}detection:\n  a: {selections}\n  condition: {condition}\n{more}{tests}"


CLEAN = rule("{keywords: {any: [conceal]}}")


def found(tmp_path: Path, text: str, **options: Any) -> list[Diagnostic]:
    (tmp_path / "rule.yaml").write_text(text, encoding="utf-8")
    options.setdefault("today", TODAY)
    return list(lint([tmp_path], LintOptions(**options)).diagnostics)


def codes(tmp_path: Path, text: str, **options: Any) -> list[str]:
    return [diagnostic.code for diagnostic in found(tmp_path, text, **options)]


def test_a_good_rule_is_clean(tmp_path: Path) -> None:
    assert found(tmp_path, CLEAN) == []


two = "{keywords: {any: [conceal]}}\n  b: {keywords: {any: [hide]}}"
OTHER = CLEAN.replace("name: a_rule", "name: other").replace("9e01", "9e02")
BAD_AND_GOOD = {
    "NM100": (CLEAN.replace("title: A rule\n", ""), CLEAN),
    "NM101": (CLEAN.replace("severity:", "severty:"), CLEAN),
    "NM102": (CLEAN + "---\n" + CLEAN, CLEAN + "---\n" + OTHER),
    "NM110": (rule("{keywords: {any: [conceal]}}", "a and bb"), rule(two, "a or b")),
    "NM111": (rule(two, "a"), rule(two, "a or b")),
    "NM120": (rule(two, "a or (a and b)"), rule(two, "a and not b")),
    "NM201": (rule("{regex: ['conceal(?=x)']}"), rule("{regex: ['concealx']}")),
    "NM202": (rule("{regex: ['(?:conceal)*']}"), rule("{regex: ['(?:conceal)+']}")),
    "NM203": (
        rule("{keywords: {any: [lie]}, word: false}"),
        rule("{keywords: {any: [lie]}, word: true}"),
    ),
    "NM204": (
        rule("{fuzzy: {any: [conceal it], score: 88}}"),
        rule("{fuzzy: {any: [concealing everything], score: 88}}"),
    ),
    "NM205": (rule("{regex: ['asks']}"), CLEAN),
    "NM503": (CLEAN + "scope: {phase: [tool]}\n", CLEAN + "scope: {phase: [prompt]}\n"),
    "NM301": (
        rule("{semantic: {exemplars: [they conceal it], threshold: 0.6}}"),
        rule("{semantic: {exemplars: [they conceal it], negatives: [other], threshold: 0.6}}"),
    ),
    "NM312": (CLEAN.replace("risk_score: 40", "risk_score: 90"), CLEAN),
    "NM401": (
        CLEAN + "fidelity: {metric: cosine, min: 0.5}\n",
        CLEAN + "fidelity: {metric: fve, min: 0.5}\n",
    ),
    "NM601": (rule("{keywords: {any: [conceal]}}", tests=TESTS.rsplit("  -", 1)[0]), CLEAN),
    "NM602": (
        CLEAN + "exceptions: [{name: e, when: a, reason: r, expires: 2026-11-21}]\n",
        CLEAN + "exceptions: [{name: e, when: a, reason: r, expires: 2026-11-22}]\n",
    ),
}


@pytest.mark.parametrize("code", BAD_AND_GOOD)
def test_each_code_is_raised_where_it_is_deserved_and_only_there(tmp_path: Path, code: str) -> None:
    bad, good = BAD_AND_GOOD[code]
    assert code in codes(tmp_path, bad)
    assert code not in codes(tmp_path, good)


def test_conditions_that_are_never_or_always_true_are_named(tmp_path: Path) -> None:
    never = found(tmp_path, rule("{keywords: {any: [conceal]}}", "a and not a"))
    always = found(tmp_path, rule("{keywords: {any: [conceal]}}", "a or not a"))
    assert [d.message for d in never] == ["the condition can never be true"]
    assert [d.message for d in always] == ["the condition is always true"]


def test_a_low_fuzzy_score_is_nm204(tmp_path: Path) -> None:
    low = rule("{fuzzy: {any: [concealing everything], score: 79}}")
    assert codes(tmp_path, low) == ["NM204"]


def test_exemplars_and_negatives_are_put_to_the_encoder(tmp_path: Path) -> None:
    text = "{semantic: {exemplars: [zzzz], negatives: [%s], threshold: 0.6, margin: %s}}"
    encoder = LetterEncoder()
    near = codes(tmp_path, rule(text % ("zzzz y", 0.5)), encoder=encoder)
    far = codes(tmp_path, rule(text % ("aaaa", 0.5)), encoder=encoder)
    loose = codes(tmp_path, rule(text % ("zzzz y", 0.0)), encoder=encoder)
    assert near == ["NM302"]
    assert far == []
    assert loose == []  # a negative never beats itself: no margin, no match
    unmatched = codes(tmp_path, rule(text % ("zzzz y", 0.5)))
    assert unmatched == []


def subject(text: str, **options: Any) -> LintSubject:
    (document,) = read_documents("a.yaml", text)
    return LintSubject(document, None, LintOptions(**options))


COUNT = "aggregation: {rules: [a], window: {tokens: 32}, condition: {gte: 3}, min_samples: 1}\n"


def test_a_count_above_the_samples_of_its_window_is_nm501() -> None:
    assert [d.code for d in check_count(subject(COUNT, sampled_share=1 / 16))] == ["NM501"]
    assert list(check_count(subject(COUNT, sampled_share=0.5))) == []
    assert list(check_count(subject(COUNT))) == []


def stopping(tmp_path: Path, condition: str) -> list[str]:
    from dataclasses import replace

    from detect_support import rules_of

    text = rule(two, condition)
    (loaded,) = rules_of(tmp_path, text).rules
    stop = subject(text + "actions: [{alert: {routes: [x]}}, {stop_generation: {mode: shadow}}]\n")
    return [d.code for d in check_stop(replace(stop, rule=loaded))]


def test_stopping_on_one_text_selection_is_nm502(tmp_path: Path) -> None:
    assert stopping(tmp_path, "a or b") == ["NM502"]
    assert stopping(tmp_path, "a and b") == []


def test_every_code_says_what_it_is() -> None:
    assert set(BAD_AND_GOOD) < set(CODES)
    assert all(code.title for code in CODES.values())
    assert len(benign_texts()) > 300


def test_a_part_that_does_not_suffice_alone_may_match_ordinary_texts(tmp_path: Path) -> None:
    common = "{regex: ['asks']}\n  b: {keywords: {any: [conceal]}}"
    assert codes(tmp_path, rule(common, "a and b")) == []
    assert codes(tmp_path, rule(common, "a or b")) == ["NM205"]


def test_a_broken_file_does_not_hide_what_others_deserve(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    assert codes(tmp_path, BAD_AND_GOOD["NM205"][0]) == ["NM100", "NM205"]


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="no such rule file"):
        lint([tmp_path / "nowhere"])


@pytest.mark.parametrize("place", ["same line", "line above"])
def test_a_comment_silences_a_warning_by_its_code(tmp_path: Path, place: str) -> None:
    bad = BAD_AND_GOOD["NM205"][0]
    comment = "# nae: ignore[NM205]"
    quiet = (
        bad.replace("['asks']}", "['asks']}  " + comment)
        if place == "same line"
        else bad.replace("  a:", f"  {comment}\n  a:")
    )
    (tmp_path / "rule.yaml").write_text(quiet)
    report = lint([tmp_path], LintOptions(today=TODAY))
    assert (report.diagnostics, report.ignored) == ((), 1)


def test_a_comment_with_another_code_silences_nothing_and_is_noted(tmp_path: Path) -> None:
    bad = BAD_AND_GOOD["NM205"][0].replace("['asks']}", "['asks']}  # nae: ignore[NM204]")
    assert codes(tmp_path, bad) == ["NM104", "NM205"]


def test_errors_cannot_be_ignored(tmp_path: Path) -> None:
    bad = CLEAN.replace("severity: medium", "severty: medium  # nae: ignore[NM101]")
    assert "NM101" in codes(tmp_path, bad)


def test_fix_mends_keys_names_and_scores_and_keeps_comments(tmp_path: Path) -> None:
    text = CLEAN.replace("severity: medium", "severty: medium  # why")
    text = text.replace("condition: a", "condition: aa").replace("  a:", "  aaa:")
    text = text.replace("risk_score: 40", "risk_score: 90")
    file = tmp_path / "rule.yaml"
    file.write_text(text)
    assert fix([tmp_path], LintOptions(today=TODAY)) == {file: 3}
    assert "severity: medium  # why" in file.read_text()
    assert "condition: aaa" in file.read_text()
    assert "risk_score: 47" in file.read_text()
    assert found(tmp_path, file.read_text()) == []


def test_fix_leaves_what_a_person_must_decide(tmp_path: Path) -> None:
    file = tmp_path / "rule.yaml"
    file.write_text(CLEAN.replace("severity: medium", "severity: enormous"))
    before = file.read_text()
    assert fix([tmp_path]) == {}
    assert file.read_text() == before


SARIF_ESSENTIALS = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {"type": "object", "required": ["id"]},
                                    }
                                },
                            }
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message"],
                            "properties": {
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "message": {"type": "object", "required": ["text"]},
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "properties": {
                                            "physicalLocation": {
                                                "type": "object",
                                                "required": ["artifactLocation"],
                                                "properties": {
                                                    "region": {
                                                        "type": "object",
                                                        "properties": {
                                                            "startLine": {"minimum": 1},
                                                            "startColumn": {"minimum": 1},
                                                        },
                                                    }
                                                },
                                            }
                                        },
                                    },
                                },
                                "fixes": {
                                    "type": "array",
                                    "items": {"type": "object", "required": ["artifactChanges"]},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_sarif_has_the_shape_of_its_standard(tmp_path: Path) -> None:
    bad = BAD_AND_GOOD["NM101"][0].replace("[conceal]", "[lie], all: []}, word: false, x: {")
    log = to_sarif(found(tmp_path, bad), "0.1")
    jsonschema.validate(log, SARIF_ESSENTIALS)
    run = log["runs"][0]
    listed = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert listed[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].startswith(
            "file:///"
        )
    (mend,) = [r["fixes"][0] for r in run["results"] if "fixes" in r]
    (change,) = mend["artifactChanges"][0]["replacements"]
    assert change["insertedContent"] == {"text": "severity"}


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ("[tool]", "the rule can never match"),
        ("[prompt, tool]", "the rule matches in the other phases only"),
    ],
)
def test_a_phase_that_is_never_captured_is_told(tmp_path: Path, phases: str, said: str) -> None:
    text = CLEAN + f"scope: {{phase: {phases}}}\n"
    (diagnostic,) = found(tmp_path, text)
    assert (diagnostic.code, diagnostic.level) == ("NM503", "warning")
    assert diagnostic.message.endswith(said)
    assert diagnostic.where.line == text.count("\n")
    assert found(tmp_path, text.rstrip() + "  # nae: ignore[NM503]\n") == []
