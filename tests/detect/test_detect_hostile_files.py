"""Rule files that are none, and rules that take too much: diagnostics with their places."""

import os
import socket
from pathlib import Path

import pytest
from detect_support import HEADER, SIMPLE

from nae_monitor.cli.rules_fmt import fmt
from nae_monitor.detect import bounds, documents, load_rules, packs, selection_reader, sources
from nae_monitor.detect.lint import lint
from nae_monitor.detect.sources import found_files, rule_files
from nae_monitor.errors import ConfigurationError, Problem, RuleError


def problems_of(place: Path) -> tuple[Problem, ...]:
    with pytest.raises(RuleError) as caught:
        load_rules([place])
    assert caught.value.problems
    assert all(p.where.file and p.message for p in caught.value.problems)
    return caught.value.problems


def messages(place: Path) -> str:
    return "\n".join(str(problem) for problem in problems_of(place))


def rule(number: int, detection: str, more: str = "") -> str:
    head = HEADER.replace("6b1f0c1e", f"{number:08x}").replace("a_rule", f"rule_{number}")
    return f"{head}detection: {{{detection}, condition: 1 of them}}\n{more}"


def write(place: Path, *texts: str) -> Path:
    for number, text in enumerate(texts):
        (place / f"f{number}.yaml").write_text(text, encoding="utf-8")
    return place


# What stands where a rule file should.


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


ODD = [make_pipe, make_socket, make_loop, make_dangling, Path.mkdir]


@pytest.mark.parametrize("make", ODD)
def test_what_has_a_rule_files_name_and_is_none_is_said_and_never_passed_over(
    tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    write(tmp_path, SIMPLE)
    make(Path("odd.yaml"))  # type: ignore[operator]
    assert "odd.yaml: is no regular file (move it away)" in messages(tmp_path)
    assert lint([tmp_path]).worst == "error"


@pytest.mark.parametrize("make", ODD[:4])
def test_a_path_that_is_neither_file_nor_directory_is_a_problem(
    tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("odd.yaml"))  # type: ignore[operator]
    assert len(problems_of(tmp_path / "odd.yaml")) == 1
    with pytest.raises(RuleError):
        rule_files([tmp_path / "odd.yaml"])


def test_locks_of_editors_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, SIMPLE)
    make_dangling(tmp_path / ".#f0.yaml")
    assert len(load_rules([tmp_path])) == 1


def test_directories_inside_one_another_beyond_every_path_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, SIMPLE)
    monkeypatch.chdir(tmp_path)
    for _ in range(60):  # a path over the system's 4,096 bytes
        Path("deep" * 20).mkdir()
        os.chdir("deep" * 20)
    monkeypatch.chdir(tmp_path)
    assert "cannot be reached: File name too long" in messages(tmp_path)


def test_too_many_entries_end_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ENTRIES", 5)
    for number in range(8):
        (tmp_path / f"note{number}.txt").touch()
    write(tmp_path, SIMPLE)
    assert "holds more than 5 entries" in messages(tmp_path)


def test_a_directory_that_cannot_be_listed_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    write(tmp_path, SIMPLE)
    plain = Path.iterdir

    def closed(place: Path) -> object:
        if place.name == "closed":
            raise PermissionError(13, "Permission denied")
        return plain(place)

    monkeypatch.setattr(Path, "iterdir", closed)  # root may list everything
    assert "closed: cannot be listed: Permission denied" in messages(tmp_path)


def test_links_to_files_are_followed_and_load_once(tmp_path: Path) -> None:
    write(tmp_path, SIMPLE)
    (tmp_path / "again.yaml").symlink_to(tmp_path / "f0.yaml")
    problems: list[Problem] = []
    assert len(found_files([tmp_path, tmp_path / "f0.yaml"], problems)) == 1
    assert problems == []


def test_bytes_that_are_no_text_are_refused_by_every_verb_that_reads_files(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"title: \xe9\n")
    assert "f.yaml:1:8: is not UTF-8" in messages(tmp_path)
    assert lint([tmp_path]).worst == "error"
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        fmt([str(tmp_path)])


# Rules that take too much, one by one and together.


def test_every_fault_of_a_hostile_rule_is_reported_at_once(tmp_path: Path) -> None:
    text = rule(1, "a: {regex: ['(((', 'a**']}, b: {keywords: {any: [9, '']}}", "xyz: 1\n")
    text = text.replace("severity: medium", "severity: 0xffffffffffffffffffffffffff")
    found = problems_of(write(tmp_path, text))
    assert len(found) >= 6
    assert all(problem.where.line and problem.where.column for problem in found)


@pytest.mark.parametrize(
    "condition",
    ["(" * 10_000 + "a" + ")" * 10_000, "not " * 10_000 + "a", "a and " * 10_000 + "a"],
    ids=["parentheses", "nots", "ands"],
)
def test_a_condition_ten_thousand_deep_is_a_problem(tmp_path: Path, condition: str) -> None:
    text = HEADER + f"detection: {{a: {{keywords: {{any: [hide]}}}}, condition: '{condition}'}}\n"
    (problem,) = problems_of(write(tmp_path, text))
    assert problem.where.line == 7
    assert problem.where.column == text.splitlines()[6].index("condition") + 1
    assert problem.message.startswith("condition, column 1: longer than")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("keywords: {any: [LONG]}", "any[0] is longer than 500 characters"),
        ("fuzzy: {any: [LONG]}", "any[0] is longer than 500 characters"),
        ("semantic: {exemplars: [LONG], threshold: 0.5}", "is longer than 500 characters"),
        ("activation: {direction: LONG, gte: 1}", "direction"),
        ("field: LONG, keywords: {any: [hide]}", "field"),
    ],
)
def test_a_hundred_thousand_characters_anywhere_are_a_problem(
    tmp_path: Path, selection: str, message: str
) -> None:
    long = "long " * 20_000
    found = messages(write(tmp_path, rule(1, f"a: {{{selection.replace('LONG', long)}}}")))
    assert message in found
    assert len(found) < 5_000


def test_a_hundred_thousand_values_are_a_problem_at_the_first_too_many(tmp_path: Path) -> None:
    text = rule(1, "a: {keywords: {any: [" + "x, " * 100_000 + "]}}")
    assert "holds more than 100000 values" in messages(write(tmp_path, text))


def test_a_mapping_of_very_many_keys_is_one_problem(tmp_path: Path) -> None:
    many = ", ".join(f"k{number}: 1" for number in range(1_500))
    found = problems_of(write(tmp_path, rule(1, f"a: {{{many}}}", f"fidelity: {{{many}}}\n")))
    assert len(found) < 10
    assert "fidelity holds 1500 keys; at most 1000" in "\n".join(map(str, found))


def test_selections_and_their_mentions_are_bounded(tmp_path: Path) -> None:
    many = ", ".join(f"a{number}: {{keywords: {{any: [hide]}}}}" for number in range(257))
    assert "257 selections; at most 256" in messages(write(tmp_path, rule(1, many)))
    some = ", ".join(f"a{number}: {{keywords: {{any: [hide]}}}}" for number in range(100))
    often = rule(1, some).replace("1 of them", " or ".join(["1 of a*"] * 60))
    assert "name selections 6000 times; at most 4096" in messages(write(tmp_path, often))


@pytest.mark.parametrize(
    ("name", "selection"),
    [
        ("keywords", "keywords: {any: [hide, seek], all: [they]}"),
        ("patterns", "regex: [hide, seek, they]"),
        ("fuzzy phrases", "fuzzy: {any: [hide them, seek them, they hide]}"),
        ("sentences", "semantic: {exemplars: [a, b], negatives: [c], threshold: 0.5}"),
        ("directions", "activation: {direction: d.safetensors#a, layer: 2, gte: 1}"),
        ("views", "field: request.rNUMBER, keywords: {any: [hide]}"),
    ],
)
def test_what_rules_hold_together_is_bounded_and_the_most_greedy_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, selection: str
) -> None:
    each = 1 if name in ("directions", "views") else 3
    texts = [rule(n, f"a: {{{selection.replace('NUMBER', str(n))}}}") for n in range(4)]
    monkeypatch.setattr(bounds, "BOUNDS", {**bounds.BOUNDS, name: 4 * each})
    assert len(load_rules([write(tmp_path, *texts)])) == 4
    more = ", ".join(f"b{n}: {{{selection.replace('NUMBER', f'b{n}')}}}" for n in range(2))
    write(tmp_path, *texts, rule(9, more))
    (problem,) = problems_of(tmp_path)
    assert problem.code == bounds.CODE
    assert f"the rules hold {6 * each} {name} together; at most {4 * each}" in problem.message
    assert f"most are in rule_9 ({tmp_path}/f4.yaml:1:1) {2 * each}, " in problem.message
    assert str(problem.where) == f"{tmp_path}/f4.yaml:1:1"
    assert bounds.CODE in {diagnostic.code for diagnostic in lint([tmp_path]).diagnostics}


def test_characters_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BOUNDS", {**bounds.BOUNDS, "characters of patterns": 10})
    text = rule(1, "a: {regex: [hide_it, hide_that]}")
    assert "16 characters of patterns together" in messages(write(tmp_path, text))


def test_nothing_is_compiled_where_rules_are_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "BOUNDS", {**bounds.BOUNDS, "patterns": 1})
    compiled: list[str] = []
    monkeypatch.setattr(selection_reader, "compile_pattern", lambda p, case: compiled.append(p))
    write(tmp_path, rule(1, "a: {regex: [hide, seek]}"))
    problems_of(tmp_path)
    assert lint([tmp_path]).worst == "error"
    assert compiled == []


def test_compiled_patterns_are_bounded_in_a_rule_and_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [rule(n, r"a: {regex: ['x\w{99}', 'y\w{99}', 'z\w{99}', '(((']}") for n in (1, 2)]
    monkeypatch.setattr(selection_reader, "MAX_RULE_PROGRAM", 300)
    found = messages(write(tmp_path, texts[0]))
    assert "need more than 300 RE2 instructions (split it, or repeat less) [NM105]" in found
    monkeypatch.undo()
    monkeypatch.setattr(packs, "MAX_PROGRAM", 1_000)
    found = messages(write(tmp_path, *(text.replace(", '((('", "") for text in texts)))
    assert "RE2 instructions together; at most 1000" in found


def test_files_and_values_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, SIMPLE, rule(2, "a: {keywords: {any: [hide]}}"))
    monkeypatch.setattr(packs, "MAX_SET_VALUES", 15)
    assert "values together; at most 15; most are in" in messages(tmp_path)
    monkeypatch.setattr(bounds, "MAX_SET_BYTES", 300)
    assert "bytes together; at most 300; the largest are" in messages(tmp_path)


def test_overrides_and_filters_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = """\
schema_version: 1
name: NAME
filter: {rules: ['*'], when: {keywords: {any: [NAME]}}, reason: r}
"""
    filters = "---\n".join(one.replace("NAME", f"f{number}") for number in range(4))
    write(tmp_path, SIMPLE, filters)
    assert len(load_rules([tmp_path]).rules[0].exceptions) == 4
    monkeypatch.setattr(documents, "MAX_EFFORT", 150)
    assert [problem.code for problem in problems_of(tmp_path)] == [bounds.CODE]


def test_an_override_of_an_overridden_key_takes_the_later_value(tmp_path: Path) -> None:
    change = "schema_version: 1\noverride: {rule: a_rule, severity: replace, risk_score: replace}\n"
    texts = [f"{change}severity: {s}\nrisk_score: {r}\n" for s, r in (("low", 15), ("high", 60))]
    rules = load_rules([write(tmp_path, SIMPLE, *texts)])
    assert rules.rules[0].severity.value == "high"


def test_an_override_of_an_override_is_no_rule_to_find(tmp_path: Path) -> None:
    change = "schema_version: 1\nname: changer\noverride: {rule: NAME, severity: replace}\n"
    change += "severity: low\n"
    found = messages(
        write(tmp_path, SIMPLE, change.replace("NAME", "a_rule"), change.replace("NAME", "changer"))
    )
    assert "no rule 'changer'" in found


def test_of_very_many_problems_the_first_are_shown_and_the_rest_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "MAX_PROBLEMS", 20)
    write(tmp_path, *(f"a: {n}\n" for n in range(30)))
    found = problems_of(tmp_path)
    assert len(found) == 21
    assert "more problems (mend those above first)" in str(found[-1])


@pytest.mark.parametrize("hint", ["rule", "condition"])
def test_hints_are_found_among_names_of_any_length(tmp_path: Path, hint: str) -> None:
    names = ", ".join(f"{'k' * 5_000}{n}: {{keywords: {{any: [hide]}}}}" for n in range(200))
    text = rule(1, names)
    if hint == "condition":
        text = text.replace("1 of them", "'" + "k" * 1_900 + "'")
    assert len(max(messages(write(tmp_path, text)).splitlines(), key=len)) < 10_000
