import re
from collections import Counter
from pathlib import Path

from rules_support import FAMILIES

from nae_monitor.detect import (
    Encoder,
    Judge,
    RuleSet,
    builtin_rules_directory,
    load_rules,
    run_inline_tests,
)
from nae_monitor.detect.aggregation import AggregationRule
from nae_monitor.detect.evaluation import SemanticAnswerer
from nae_monitor.detect.lint.run import lint
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.tools.coverage import coverage
from nae_monitor.detect.views import Subject, Views
from nae_monitor.records import FindingState, Severity


def every_rule(rules: RuleSet) -> list[Rule | AggregationRule]:
    return [*rules.rules, *rules.aggregations]


def test_every_test_in_the_packs_passes_without_a_model(rules: RuleSet) -> None:
    assert [r for r in run_inline_tests(rules) if r.outcome != "passed"] == []


def test_every_test_in_the_packs_passes_with_the_real_encoder(
    rules: RuleSet, encoder: Encoder
) -> None:
    assert [r for r in run_inline_tests(rules, encoder) if r.outcome != "passed"] == []


def test_every_aggregation_is_complete_and_tested_both_ways(rules: RuleSet) -> None:
    assert len(rules.aggregations) == 6
    for rule in rules.aggregations:
        counts = Counter(test.expect for test in rule.tests)
        assert counts[FindingState.MATCH] >= 3, rule.name
        assert counts[FindingState.NO_MATCH] >= 3, rule.name
        for key in ("description", "guide", "falsepositives", "references", "author", "date"):
            assert rule.header[key], (rule.name, key)
        assert rule.tags, rule.name
        assert rule.risk_score is not None, rule.name
        assert rule.suppress is not None, rule.name


def test_the_tests_of_every_rule_exercise_each_selection(rules: RuleSet) -> None:
    lacking = [
        (rule.rule_name, selection.name)
        for rule in coverage(rules.rules)
        for selection in rule.selections
        if not (selection.hit and selection.missed)
    ]
    assert lacking == []


def test_lint_has_nothing_to_say_of_the_packs() -> None:
    report = lint([builtin_rules_directory()])
    assert (report.diagnostics, report.ignored) == ((), 0)


def test_every_pack_says_what_it_sees_what_it_cannot_and_what_to_do(rules: RuleSet) -> None:
    by_pack: dict[Path, set[str]] = {}
    for rule in every_rule(rules):
        by_pack.setdefault(Path(rule.file).parent, set()).add(rule.name)
    for pack, names in by_pack.items():
        text = (pack / "README.md").read_text(encoding="utf-8")
        headings = [line for line in text.splitlines() if line.startswith("## ")]
        assert headings == ["## What it sees", "## What it cannot see", "## How to respond"], pack
        measured = r"^Benign false-positive rate: \d+ of \d,\d{3} held-out ordinary messages"
        assert re.search(measured, text, re.MULTILINE), pack
        assert {name for name in names if f"`{name}`" not in text} == set(), pack


def test_only_what_is_no_fault_or_counted_by_an_aggregation_is_informational(
    rules: RuleSet,
) -> None:
    no_fault = {"refusal_planned", "over_refusal"}
    counted = {name for rule in rules.aggregations for name in rule.rules}
    # A family is counted through harmful_request, which matches wherever the family's theme does.
    counted |= set(FAMILIES.values())
    found = {rule.name for rule in rules.rules if rule.severity is Severity.INFORMATIONAL}
    assert found <= no_fault | counted
    assert all(rule.severity.rank > 0 for rule in rules.aggregations)


def test_one_decode_that_names_a_risk_to_life_is_enough(rules: RuleSet) -> None:
    loud = {rule.name for rule in rules.rules if rule.severity.rank >= Severity.HIGH.rank}
    assert {"self_harm_risk", "weapons_misuse"} <= loud


def test_every_rule_is_complete_and_tested_both_ways(rules: RuleSet) -> None:
    for rule in rules.rules:
        counts = Counter(test.expect_match for test in rule.tests)
        assert counts[True] >= 3, rule.name
        assert counts[False] >= 3, rule.name
        assert rule.description, rule.name
        assert rule.guide, rule.name
        assert rule.references, rule.name
        assert rule.falsepositives, rule.name
        assert rule.tags, rule.name
        assert rule.author, rule.name
        assert rule.date, rule.name
        assert rule.risk_score is not None, rule.name
        assert rule.fidelity is not None, rule.name


def test_semantic_selections_carry_negatives_and_a_margin(rules: RuleSet) -> None:
    specs = [spec for rule in rules.rules for _, spec in rule.semantic_selections()]
    assert len(specs) == 5
    assert all(spec.negatives and spec.margin > 0 for spec in specs)


def test_files_lie_under_their_category_and_bear_their_names(rules: RuleSet) -> None:
    root = builtin_rules_directory()
    for rule in every_rule(rules):
        place = Path(rule.file).relative_to(root)
        assert (len(place.parts), place.stem) == (2, rule.name)


def test_every_exemplar_reaches_its_own_threshold_and_no_negative_does(
    rules: RuleSet, semantic: SemanticAnswerer
) -> None:
    for rule in rules.rules:
        for name, spec in rule.semantic_selections():
            for texts, expected in ((spec.exemplars, True), (spec.negatives, False)):
                for text in texts:
                    views = Views(Subject(text, "", "", "", {}))
                    view = views.view("explanation", "outside", True)
                    hits, _ = semantic(rule, rule.selections[name], view)  # type: ignore[arg-type]
                    assert bool(hits) is expected, (rule.name, text)


def test_the_readme_says_how_to_enable_what_is_off(rules: RuleSet, tmp_path: Path) -> None:
    off = {rule.name for rule in every_rule(rules) if not rule.enabled}
    assert off == {
        "low_fidelity_decode", "out_of_band_reconstruction",
        "anomalous_activation", "anomalous_repeated",
    }  # fmt: skip
    readme = builtin_rules_directory() / "monitor_integrity" / "README.md"
    _, _, rest = readme.read_text(encoding="utf-8").partition("```yaml\n")
    (tmp_path / "own.yaml").write_text(rest.partition("```")[0], encoding="utf-8")
    changed = load_rules(["builtin", tmp_path])
    assert all(rule.enabled for rule in every_rule(changed))


def test_the_packs_load_into_a_judge_with_the_real_encoder(
    rules: RuleSet, encoder: Encoder
) -> None:
    assert Judge(rules, encoder).rule_set.fingerprint == load_rules(["builtin"]).fingerprint
