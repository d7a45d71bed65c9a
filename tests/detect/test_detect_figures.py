"""Selections over numbers and directions: `value` and `activation`."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detect_support import HEADER, activation, decoding, rules_of, transcript
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nae_monitor.detect import Judge, LiveRules, run_inline_tests
from nae_monitor.detect.directions import read_direction
from nae_monitor.detect.figures import ActivationMatcher, ValueMatcher
from nae_monitor.detect.tools.json_schema import rule_schema
from nae_monitor.detect.views import Missing, Subject
from nae_monitor.errors import RuleError
from nae_monitor.records import FindingState, Request

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
UP = torch.tensor([3.0, 0.0, 0.0, 4.0])  # the tests' activations point along the first axis
DIRECTION = "activation: {direction: d.safetensors#up, layer: 20, measure: cosine, gte: %s}"


def value_rule(value: str, field: str) -> str:
    return HEADER + f"detection: {{v: {{field: {field}, value: {value}}}, condition: v}}\n"


def direction_rule(bound: float, change: tuple[str, str] = ("", "")) -> str:
    selection = (DIRECTION % bound).replace(*change)
    return HEADER + f"detection: {{d: {{{selection}}}, condition: d}}\n"


def state(rules, act=None, dec=None):  # type: ignore[no-untyped-def]
    found = Judge(rules).judge(act or activation(), dec or decoding("a text"), transcript())
    return found[0].state if found else FindingState.NO_MATCH


@given(st.none() | NUMBERS, st.none() | NUMBERS, st.lists(NUMBERS, max_size=3), NUMBERS)
def test_a_value_is_admitted_exactly_where_every_given_bound_holds(gte, lte, among, figure):  # type: ignore[no-untyped-def]
    holds = [True]
    if gte is not None:
        holds.append(not figure < gte)
    if lte is not None:
        holds.append(not figure > lte)
    if among:
        holds.append(any(figure == item for item in among))
    assert ValueMatcher(gte, lte, tuple(among)).admits(figure) is all(holds)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("fve", "{lte: 0.0}", FindingState.MATCH),
        ("fve", "{gte: 0.0}", FindingState.NO_MATCH),
        ("cosine", "{gte: 0.8, lte: 0.8}", FindingState.MATCH),
        ("rank", "{in: [1, 2]}", FindingState.MATCH),
        ("position", "{in: [21, 22]}", FindingState.NO_MATCH),
        ("norm", "{gte: 199}", FindingState.MATCH),
        ("layer", "{in: [20]}", FindingState.MATCH),
        ("generated_tokens", "{lte: 19}", FindingState.NO_MATCH),
        ("closed", "{in: [1]}", FindingState.MATCH),
        ("score.drift", "{gte: 3}", FindingState.MATCH),
        ("score.other", "{gte: 3}", FindingState.UNDECIDED),
        ("support", "{gte: 0}", FindingState.UNDECIDED),
        ("percentile", "{lte: 5}", FindingState.UNDECIDED),
    ],
)
def test_numeric_fields_are_read_from_the_judged_decoding(
    tmp_path: Path, field: str, value: str, expected: FindingState
) -> None:
    act = dataclasses.replace(activation(), scores={"drift": 4.0})
    rules = rules_of(tmp_path, value_rule(value, field))
    assert state(rules, act, decoding("a text", fve=-0.3)) is expected


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("12.5", FindingState.MATCH),
        ("3", FindingState.NO_MATCH),
        ("", FindingState.NO_MATCH),
        ("many", FindingState.UNDECIDED),
        ("nan", FindingState.UNDECIDED),
        ("1e999", FindingState.UNDECIDED),
    ],
)
def test_a_request_key_is_a_number_unknown_or_known_to_be_absent(
    tmp_path: Path, given_text: str, expected: FindingState
) -> None:
    request = Request("r1", "r1", "m", attributes={"risk": given_text} if given_text else {})
    rules = rules_of(tmp_path, value_rule("{gte: 10}", "request.risk"))
    assert state(rules, activation(request=request)) is expected


@pytest.mark.parametrize("figure", [None, math.nan, math.inf])
def test_a_figure_that_was_not_measured_is_unknown_never_clean(
    tmp_path: Path, figure: float | None
) -> None:
    rules = rules_of(tmp_path, value_rule("{lte: 0}", "fve"))
    assert state(rules, dec=decoding("a text", fve=figure)) is FindingState.UNDECIDED


def test_an_alert_shows_the_figure_that_matched(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, value_rule("{lte: 0}", "fve"))
    (finding,) = Judge(rules).judge(activation(), decoding("x", fve=-0.25), transcript())
    (span,) = finding.spans
    assert (span.selection, span.field, span.text, span.score) == ("v", "fve", "-0.25", -0.25)


@pytest.mark.parametrize(
    "selection",
    [
        "value: {gte: 1}",
        "field: explanation, value: {gte: 1}",
        "field: fvee, value: {gte: 1}",
        "field: request., value: {gte: 1}",
        "field: fve, value: {}",
        "field: fve, value: {gte: 2, lte: 1}",
        "field: fve, value: {gte: .nan}",
        "field: fve, value: {in: []}",
        "field: fve, value: {in: [true]}",
        "field: fve, value: {in: [0x" + "f" * 900 + "]}",
        "field: fve, value: {eq: 1}",
        "field: fve, quotes: outside, value: {gte: 1}",
        "field: fve, keywords: {any: [hide]}",
        "field: fve, " + DIRECTION % 0.1,
        "activation: {direction: d.safetensors#up, gte: 0.1}",
        "activation: {direction: d.safetensors#up, layer: 20}",
        "activation: {direction: d.safetensors#up, layer: 20, gte: 1.1}",
        "activation: {direction: d.safetensors, layer: 20, gte: 0.1}",
        "activation: {direction: d.pt#up, layer: 20, gte: 0.1}",
        "activation: {direction: ../d.safetensors#up, layer: 20, gte: 0.1}",
        "activation: {direction: /d.safetensors#up, layer: 20, gte: 0.1}",
        "activation: {direction: d.safetensors#up, layer: 20, gte: 0.1, measure: l2}",
    ],
)
def test_a_selection_that_could_not_mean_anything_is_refused(
    tmp_path: Path, selection: str
) -> None:
    with pytest.raises(RuleError):
        rules_of(tmp_path, HEADER + f"detection: {{v: {{{selection}}}, condition: v}}\n")


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), st.integers(0, 3))
def test_cosine_and_projection_agree_with_their_definitions(values, axis):  # type: ignore[no-untyped-def]
    vector, along = np.asarray(values, dtype=np.float64), np.eye(4)[axis]
    subject = Subject("", "", "", "", {}, vector=torch.from_numpy(vector), layer=3)
    source = dataclasses.replace(read_direction("d.safetensors#up", "none/x.yaml"), vector=along)
    projection = ActivationMatcher(source, 3, "projection", 0.0).figure("", subject)
    cosine = ActivationMatcher(source, 3, "cosine", 0.0).figure("", subject)
    assert projection == pytest.approx(vector[axis], abs=1e-6)
    if not vector.any():
        assert isinstance(cosine, Missing)
    else:
        assert cosine == pytest.approx(vector[axis] / np.linalg.norm(vector), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_direction_is_read_beside_its_rule_in_any_floating_type(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    save_file({"up": UP.to(dtype)}, tmp_path / "d.safetensors")
    assert state(rules_of(tmp_path, direction_rule(0.6))) is FindingState.MATCH
    assert state(rules_of(tmp_path, direction_rule(0.61))) is FindingState.NO_MATCH


def test_a_direction_that_is_not_there_or_is_for_another_layer_is_unknown(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, direction_rule(0.1))
    assert state(rules) is FindingState.UNDECIDED
    save_file({"up": UP}, tmp_path / "d.safetensors")
    rules = rules_of(tmp_path, direction_rule(0.1))
    assert state(rules, activation(layer=19)) is FindingState.UNDECIDED
    wide = dataclasses.replace(activation(), vector=torch.ones(5))
    assert state(rules, wide) is FindingState.UNDECIDED
    nothing = dataclasses.replace(activation(), vector=torch.zeros(4))
    assert state(rules, nothing) is FindingState.UNDECIDED


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": UP},
        {"up": torch.zeros(4)},
        {"up": torch.tensor([math.nan, 1.0])},
        {"up": torch.ones(2, 2)},
        {"up": torch.ones(4, dtype=torch.int64)},
        None,
    ],
)
def test_a_direction_file_without_a_usable_vector_is_refused_with_its_place(
    tmp_path: Path, tensors: dict[str, torch.Tensor] | None
) -> None:
    if tensors is None:
        (tmp_path / "d.safetensors").write_bytes(b"\xff" * 64)
    else:
        save_file(tensors, tmp_path / "d.safetensors")
    with pytest.raises(RuleError) as caught:
        rules_of(tmp_path, direction_rule(0.1))
    (problem,) = caught.value.problems
    assert (problem.code, problem.where.line) == ("NM304", 7)


def test_the_fingerprint_changes_with_a_directions_content(tmp_path: Path) -> None:
    save_file({"up": UP}, tmp_path / "d.safetensors")
    before = rules_of(tmp_path, direction_rule(0.1)).fingerprint
    save_file({"up": 2 * UP}, tmp_path / "d.safetensors")
    assert rules_of(tmp_path, direction_rule(0.1)).fingerprint == before
    save_file({"up": -UP}, tmp_path / "d.safetensors")
    assert rules_of(tmp_path, direction_rule(0.1)).fingerprint != before


def test_a_changed_direction_is_taken_over_while_running(tmp_path: Path) -> None:
    (tmp_path / "rule.yaml").write_text(direction_rule(0.5))
    live = LiveRules([tmp_path])
    row = activation(), decoding("a text"), transcript()
    assert [f.state for f in live.judge(*row)] == [FindingState.UNDECIDED]
    save_file({"up": UP}, tmp_path / "d.safetensors")
    assert live.poll()
    assert [f.state for f in live.judge(*row)] == [FindingState.MATCH]
    (tmp_path / "d.safetensors").write_bytes(b"broken")
    assert not live.poll()
    assert [f.state for f in live.judge(*row)] == [FindingState.MATCH]
    save_file({"up": -UP}, tmp_path / "d.safetensors")
    assert live.poll()
    assert live.judge(*row) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema_version: 1\nlist: words\nitems: [a]\n", "there is no rule"),
        (value_rule("{gte: 1}", "rank") + "enabled: false\n", "none of 1 rules is enabled"),
    ],
)
def test_a_set_in_which_nothing_can_match_fits_no_monitor(
    tmp_path: Path, text: str, message: str
) -> None:
    (problem,) = rules_of(tmp_path, text).unfit_for("gemma", 20)
    assert problem.message.startswith(message)


def test_an_aggregation_asks_for_its_nla_too(tmp_path: Path) -> None:
    several = (
        HEADER.replace("6b1f0c1e", "7b1f0c1e").replace("name: a_rule", "name: often")
        + "required_nla: {base_model: gemma, layer: 20}\n"
        + "aggregation: {type: event_count, rules: [a_rule], window: {tokens: 9}, "
        + "condition: {gte: 2}}\n"
    )
    rules = rules_of(tmp_path, value_rule("{gte: 1}", "rank"), several)
    assert rules.unfit_for("gemma", 20) == []
    assert [p.message for p in rules.unfit_for("gemma", 19)] == [
        "rule 'often' needs another NLA than layer 19 of 'gemma'"
    ]


def test_inline_tests_give_figures_for_what_is_not_measured(tmp_path: Path) -> None:
    text = (
        HEADER
        + "detection:\n"
        + "  d: {activation: {direction: d.safetensors#up, layer: 20, gte: 0.2}}\n"
        + "  low: {field: fve, value: {lte: 0.1}}\n"
        + "  near: {field: rank, value: {gte: 5}}\n"
        + "  condition: (d and low) or near\n"
        + "tests:\n"
        + "  - {name: both, explanation: x, fve: 0, scores: {d: 0.3, near: 1}, expect: match}\n"
        + "  - {name: under, explanation: x, fve: 0, scores: {d: 0.1, near: 1}, expect: no_match}\n"
        + "  - {name: rank, explanation: x, scores: {near: 9}, expect: match}\n"
        + "  - {name: open, explanation: x, fve: 0, scores: {near: 1}, expect: match}\n"
    )
    found = {r.test_name: r.outcome for r in run_inline_tests(rules_of(tmp_path, text))}
    assert found == {"both": "passed", "under": "passed", "rank": "passed", "open": "skipped"}


def test_the_published_schema_takes_what_the_reader_takes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    rule = {
        "schema_version": 1,
        "title": "t",
        "id": "6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e01",
        "name": "a",
        "severity": "low",
        "detection": {
            "v": {"field": "score.x", "value": {"gte": 1, "in": [1, 2]}},
            "d": {"activation": {"direction": "d.safetensors#u", "layer": 2, "gte": 0.1}},
            "condition": "v and d",
        },
    }
    jsonschema.validate(rule, rule_schema())
    rule["detection"]["v"]["value"]["eq"] = 1  # type: ignore[index]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(rule, rule_schema())
