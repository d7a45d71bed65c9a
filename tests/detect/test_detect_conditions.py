import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.detect.conditions import (
    MAX_CONDITION_DEPTH,
    And,
    ConditionError,
    Count,
    Expression,
    Name,
    Not,
    Or,
    evaluate,
    names_in,
    parse_condition,
    supporting_names,
)
from nae_monitor.errors import RuleError

NAMES = ["conceal_re", "conceal_sem", "asked", "_block"]
leaves = st.sampled_from(NAMES).map(Name) | st.builds(
    Count, st.integers(1, 2), st.just(("conceal_re", "conceal_sem"))
)
expressions = st.recursive(
    leaves,
    lambda inner: (
        inner.map(Not)
        | st.lists(inner, min_size=2, max_size=3).map(lambda x: And(tuple(x)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda x: Or(tuple(x)))
    ),
    max_leaves=8,
)


def rendered(expression: Expression) -> str:
    match expression:
        case Name(name):
            return name
        case Not(operand):
            return f"not ({rendered(operand)})"
        case And(operands):
            return " and ".join(f"({rendered(o)})" for o in operands)
        case Or(operands):
            return " or ".join(f"({rendered(o)})" for o in operands)
        case Count(needed, _):
            return f"{needed} of conceal_*"


def two_valued(expression: Expression, answers: Mapping[str, bool]) -> bool:
    match expression:
        case Name(name):
            return answers[name]
        case Not(operand):
            return not two_valued(operand, answers)
        case And(operands):
            return all(two_valued(o, answers) for o in operands)
        case Or(operands):
            return any(two_valued(o, answers) for o in operands)
        case Count(needed, names):
            return sum(answers[n] for n in names) >= needed


@given(expressions)
def test_rendered_conditions_parse_back_to_themselves(expression: Expression) -> None:
    assert parse_condition(rendered(expression), NAMES) == expression


@given(expressions, st.tuples(*(st.sampled_from([True, False, None]) for _ in NAMES)))
def test_decided_answers_hold_however_the_unknowns_turn_out(
    expression: Expression, values: tuple[bool | None, ...]
) -> None:
    answers = dict(zip(NAMES, values, strict=True))
    truth = evaluate(expression, answers)
    unknown = [name for name, value in answers.items() if value is None]
    worlds = {
        two_valued(expression, {**answers, **dict(zip(unknown, guess, strict=True))})  # type: ignore[dict-item]
        for guess in itertools.product([True, False], repeat=len(unknown))
    }
    if truth is not None:
        assert worlds == {truth}
    if not unknown:
        assert truth is not None


@given(expressions)
def test_only_selections_under_an_even_number_of_nots_support(expression: Expression) -> None:
    """Raising a supporting selection alone can change False to True; no other can."""
    other = set(names_in(expression)) - supporting_names(expression)
    for values in itertools.product([True, False], repeat=len(NAMES)):
        answers = dict(zip(NAMES, values, strict=True))
        for name in other:
            raised = two_valued(expression, {**answers, name: True})
            assert raised <= two_valued(expression, {**answers, name: False})


def column_of_fault(text: str) -> int:
    """Where a condition breaks, 1 where it does not; no other exception is caught."""
    try:
        parse_condition(text, NAMES)
    except ConditionError as error:
        return error.column
    return 1


@given(st.text(max_size=60) | st.text(st.sampled_from("ab_*()09 notandorfml\n"), max_size=60))
def test_any_text_parses_or_says_where_it_does_not(text: str) -> None:
    assert 1 <= column_of_fault(text) <= len(text) + 1


words = st.sampled_from([*NAMES, "and", "or", "not", "of", "all", "them", "1", "2", "(", ")", "c*"])


@given(st.lists(words, max_size=12))
def test_any_row_of_words_parses_or_says_where_it_does_not(row: list[str]) -> None:
    text = " ".join(row)
    assert 1 <= column_of_fault(text) <= len(text) + 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1 of conceal_*", ("conceal_re", "conceal_sem")),
        ("1 of them", ("conceal_re", "conceal_sem", "asked")),
        ("1 of _*", ("_block",)),
        ("1 of *", ("conceal_re", "conceal_sem", "asked")),
        ("1 of asked", ("asked",)),
    ],
)
def test_counts_reach_the_names_they_spell(text: str, names: tuple[str, ...]) -> None:
    assert parse_condition(text, NAMES) == Count(1, names)


def test_all_of_them_needs_every_one() -> None:
    assert parse_condition("all of them", NAMES) == Count(3, ("conceal_re", "conceal_sem", "asked"))


def test_and_binds_closer_than_or_and_not_closest() -> None:
    parsed = parse_condition("not asked and _block or conceal_re", NAMES)
    assert parsed == Or((And((Not(Name("asked")), Name("_block"))), Name("conceal_re")))


@pytest.mark.parametrize(
    ("text", "column", "code"),
    [
        ("", 1, ""),
        ("conceal_re and", 15, ""),
        ("conceal_re asked", 12, ""),
        ("(asked", 1, ""),
        ("asked)", 6, ""),
        ("conceal_r", 1, "NM110"),
        ("1 of concael_*", 6, "NM110"),
        ("asked AND _block", 7, ""),
        ("NOT asked", 1, ""),
        ("3 of conceal_*", 1, ""),
        ("0 of them", 1, ""),
        ("1 off them", 3, ""),
        ("asked or conceal_*", 10, ""),
        ("asked & _block", 7, ""),
        ("99999999 of them", 1, ""),
        ("² of them", 1, ""),
        ("1 of not", 6, ""),
    ],
)
def test_faults_name_their_column(text: str, column: int, code: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_condition(text, NAMES)
    assert (caught.value.column, caught.value.code) == (column, code)
    assert isinstance(caught.value, RuleError)


def test_near_misses_get_a_hint() -> None:
    with pytest.raises(ConditionError, match="did you mean 'conceal_re'"):
        parse_condition("conceal_ree", NAMES)


@pytest.mark.parametrize("text", ["(" * 500 + "asked" + ")" * 500, "not " * 400 + "asked"])
def test_deep_nesting_is_refused_without_a_traceback(text: str) -> None:
    with pytest.raises(ConditionError, match=f"{MAX_CONDITION_DEPTH} levels"):
        parse_condition(text, NAMES)


def test_overlong_conditions_are_refused() -> None:
    with pytest.raises(ConditionError, match="longer than"):
        parse_condition("asked or " * 10_000 + "asked", NAMES)
