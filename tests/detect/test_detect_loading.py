import os
import re
from pathlib import Path

import pytest
import yaml
from detect_support import SIMPLE, rules_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.detect import load_rules, run_inline_tests
from nae_monitor.detect.schema import RISK_BANDS
from nae_monitor.errors import RuleError
from nae_monitor.records import Severity

SECOND = SIMPLE.replace("6b1f0c1e", "7b1f0c1e").replace("name: a_rule", "name: b_rule")


def problems_of(tmp_path: Path, text: str) -> list[tuple[str, int, str]]:
    with pytest.raises(RuleError) as caught:
        rules_of(tmp_path, text)
    assert caught.value.exit_code == 2
    return [(p.code, p.where.line, f"{p.message} {p.mend}") for p in caught.value.problems]


def test_a_simple_rule_loads_with_its_defaults(tmp_path: Path) -> None:
    (rule,) = rules_of(tmp_path, SIMPLE).rules
    assert (rule.name, rule.version, rule.status) == ("a_rule", "1", "experimental")
    assert rule.enabled
    assert (rule.enforcement, rule.scope.min_token_index, rule.fidelity) == ("shadow", 0, None)


def test_unknown_keys_are_placed_and_hinted(tmp_path: Path) -> None:
    found = problems_of(tmp_path, SIMPLE + "autor: me\n")
    assert found == [("NM101", 8, "unknown key 'autor' in the rule did you mean 'author'?")]


def test_every_problem_of_every_file_is_reported_at_once(tmp_path: Path) -> None:
    broken = SIMPLE.replace("severity: medium", "severity: meduim").replace("title", "tilte")
    with pytest.raises(RuleError) as caught:
        rules_of(tmp_path, broken, "a: [", SECOND + "autor: me\n")
    files = {Path(p.where.file).name for p in caught.value.problems}
    assert files == {"rule0.yaml", "rule1.yaml", "rule2.yaml"}
    assert len(caught.value.problems) >= 5
    assert all(
        re.match(r".*rule\d\.yaml:\d+:\d+: ", line) for line in str(caught.value).split("\n")
    )


@pytest.mark.parametrize(
    ("change", "code", "line"),
    [
        (("condition: hide_kw", "condition: hide"), "NM110", 7),
        (("condition: hide_kw", "x: {regex: [abc]}, condition: hide_kw"), "NM111", 7),
        (("keywords: {any: [hide]}", "regex: ['(?!a)b']"), "NM201", 7),
        (("keywords: {any: [hide]}", "regex: ['a*']"), "NM202", 7),
        (("risk_score: 40", "risk_score: 80"), "NM312", 6),
        (("keywords: {any: [hide]}", "keywords: {any: [hide], none: [x]}"), "NM101", 7),
    ],
)
def test_a_fault_has_its_code_and_line(
    tmp_path: Path, change: tuple[str, str], code: str, line: int
) -> None:
    assert (code, line) in [(c, n) for c, n, _ in problems_of(tmp_path, SIMPLE.replace(*change))]


@pytest.mark.parametrize(
    "change",
    [
        ("schema_version: 1", "schema_version: 2"),
        ("6b1f0c1e-", "not-a-uuid"),
        ("name: a_rule", "name: A Rule"),
        ("name: a_rule", "name: no"),
        ("title: A rule\n", ""),
        ("title: A rule", "title: ''"),
        ("medium", "[medium]"),
        ("risk_score: 40", "risk_score: 40.5"),
        ("risk_score: 40", "risk_score: true"),
        ("risk_score: 40", "risk_score: .nan"),
        ("risk_score: 40", "risk_score: 0x" + "f" * 6000),
        ("risk_score: 40", "version: 1.0"),
        ("risk_score: 40", "date: yesterday"),
        ("risk_score: 40", "tags: alone"),
        ("risk_score: 40", "tags: [1]"),
        ("risk_score: 40", "enabled: 'true'"),
        ("risk_score: 40", "required_engine_version: '>=99'"),
        ("risk_score: 40", "required_engine_version: soon"),
        ("risk_score: 40", "scope: {phase: [reply]}"),
        ("risk_score: 40", "scope: {layers: [twenty]}"),
        ("risk_score: 40", "fidelity: {metric: fve}"),
        ("risk_score: 40", "exceptions: [{name: x, when: hide_kw}]"),
        ("risk_score: 40", "exceptions: [{name: x, when: nothing, reason: r}]"),
        ("risk_score: 40", "exceptions: [7]"),
        ("risk_score: 40", "tests: [{explanation: a, expect: maybe}]"),
        ("risk_score: 40", "tests: [{explanation: a, expect: match, scores: {hide_kw: 1}}]"),
        ("risk_score: 40", "tests: {a: b}"),
        ("condition: hide_kw", ""),
        ("{any: [hide]}", "{}"),
        ("{keywords: {any: [hide]}}", "{}"),
        ("{hide_kw: {keywords: {any: [hide]}}, condition: hide_kw}", "{}"),
        ("{any: [hide]}", "{any: ['\u200b']}"),
        ("{any: [hide]}", "[hide]"),
        ("keywords: {any: [hide]}", "field: output"),
        ("keywords: {any: [hide]}", "keywords: {any: [hide]}, regex: [abc]"),
        ("keywords: {any: [hide]}", "keywords: {any: [hide]}, field: explanatoin"),
        ("keywords: {any: [hide]}", "keywords: {any: [hide]}, field: request."),
        ("keywords: {any: [hide]}", "regex: [abc], word: true"),
        ("keywords: {any: [hide]}", "regex: [7]"),
        ("keywords: {any: [hide]}", "regex: abc"),
        ("keywords: {any: [hide]}", "fuzzy: {any: [hide], score: 120}"),
        ("keywords: {any: [hide]}", "fuzzy: {any: [hide], scorer: WRatio}"),
        ("keywords: {any: [hide]}", "semantic: {exemplars: [a b]}"),
        ("keywords: {any: [hide]}", "semantic: {exemplars: [a b], threshold: 0.5, encoder: x}"),
        ("{hide_kw: ", "{and: "),
        ("{hide_kw: ", "{9x: "),
        ("detection: {hide_kw: {keywords: {any: [hide]}}, condition: hide_kw}", "detection: []"),
        ("detection:", "detecshun:"),
    ],
)
def test_a_faulty_rule_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    assert change[0] in SIMPLE
    found = problems_of(tmp_path, SIMPLE.replace(*change))
    assert all(len(message) < 500 for _, _, message in found)


def test_repeated_ids_and_names_are_refused(tmp_path: Path) -> None:
    found = problems_of(tmp_path, SIMPLE + "---\n" + SIMPLE)
    assert [code for code, _, _ in found] == ["NM102", "NM102"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n---\n",
        "[]",
        "just text",
        "a: [1",
        "a: &x 1\nb: *x\n",
        "a: 1\na: 2\n",
        "? [a]\n: b\n",
        "a: !!python/object/apply:os.system [ls]\n",
        "date: 2026-99-99\n",
        "a: !!int abc\n",
        "a: !!bool abc\n",
        "a: !!timestamp abc\n",
        "a: " + "9" * 5000,
        "a: " + "[" * 5000 + "]" * 5000,
        "\x00",
        "a: \x07",
    ],
)
def test_broken_yaml_is_a_problem_and_never_a_traceback(tmp_path: Path, text: str) -> None:
    if text in ("", "---\n---\n"):
        text += SIMPLE.replace("a_rule", "A")
    assert problems_of(tmp_path, text)


def test_oversize_files_and_wrong_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(SIMPLE + "#" * 10_000_000)
    (tmp_path / "latin.yaml").write_bytes("title: é".encode("latin-1"))
    with pytest.raises(RuleError) as caught:
        load_rules([tmp_path])
    assert sorted(Path(p.where.file).name for p in caught.value.problems) == [
        "big.yaml",
        "latin.yaml",
    ]


def test_a_pattern_of_over_a_hundred_thousand_characters_is_refused(tmp_path: Path) -> None:
    text = SIMPLE.replace("keywords: {any: [hide]}", f"regex: ['{'a' * 100_001}']")
    assert [code for code, _, _ in problems_of(tmp_path, text)] == ["NM201"]


def test_missing_places_and_empty_directories_are_problems(tmp_path: Path) -> None:
    with pytest.raises(RuleError) as caught:
        load_rules([tmp_path, tmp_path / "nowhere", "/dev/null"])
    assert len(caught.value.problems) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_files_are_problems(tmp_path: Path) -> None:
    file = tmp_path / "rule.yaml"
    file.write_text(SIMPLE)
    file.chmod(0)
    with pytest.raises(RuleError, match="cannot be read"):
        load_rules([file])


def test_overlapping_paths_load_a_file_once(tmp_path: Path) -> None:
    rules_of(tmp_path, SIMPLE)
    assert len(load_rules([tmp_path, tmp_path / "rule0.yaml", str(tmp_path)])) == 1


def test_fingerprint_follows_values_and_nothing_else(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    plain = rules_of(tmp_path / "a", SIMPLE, SECOND)
    moved = rules_of(
        tmp_path / "b", "# comment\n" + SECOND + "---\n" + SIMPLE.replace("[hide]", "[ hide ]")
    )
    changed = rules_of(tmp_path / "c", SIMPLE, SECOND.replace("[hide]", "[hides]"))
    assert plain.fingerprint == moved.fingerprint != changed.fingerprint
    assert [rule.name for rule in plain.rules] == [rule.name for rule in moved.rules]
    assert len(plain.fingerprint) == 64


def test_risk_bands_cover_every_score_once() -> None:
    scores = [score for low, high in RISK_BANDS.values() for score in range(low, high + 1)]
    assert scores == list(range(101))
    assert list(RISK_BANDS) == list(Severity)


def loads_or_explains(tmp_path: Path, text: str) -> bool:
    """True for a rule set or a RuleError with problems; any other exception passes through."""
    try:
        return len(rules_of(tmp_path, text)) == 1
    except RuleError as error:
        return bool(error.problems)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=80), seed=st.integers(0, len(SIMPLE)))
def test_text_spliced_into_a_rule_loads_or_raises_rule_error(
    tmp_path: Path, text: str, seed: int
) -> None:
    spliced = SIMPLE[:seed] + text + SIMPLE[seed:]
    assert loads_or_explains(tmp_path, spliced)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "schema_version", "id", "title", "name", "version", "severity", "date", "tags", "scope",
    "detection", "exceptions", "fidelity", "tests", "required_engine_version", "guide",
]  # fmt: skip


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=yaml_values)
def test_any_value_under_any_key_loads_or_raises_rule_error(
    tmp_path: Path, key: str, value: object
) -> None:
    document = yaml.safe_load(SIMPLE) | {key: value}
    assert loads_or_explains(tmp_path, yaml.safe_dump(document, allow_unicode=True))


def test_a_rule_in_the_reference_form_loads_and_passes_its_tests() -> None:
    results = run_inline_tests(load_rules([Path(__file__).with_name("reference_rule.yaml")]))
    assert [(r.test_name, r.outcome) for r in results if r.outcome != "passed"] == []
    assert len(results) == 7
