"""Aggregation against a naive recount of all that ever came, in any order and more than once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nae_monitor.detect.aggregation import AggregationRule, Sample, Window
from nae_monitor.detect.correlation import Aggregation
from nae_monitor.records import FindingState, Severity

MATCH, UNDECIDED, NO_MATCH = FindingState.MATCH, FindingState.UNDECIDED, FindingState.NO_MATCH
NO_FLOOR = {"max_groups": 10_000, "max_group_samples": 10_000, "max_samples": 10**6}


def rule(**changes: Any) -> AggregationRule:
    plain = AggregationRule(
        id="c41d2a80-5e0b-4f36-9d7b-7e5d0b1f2e04",
        name="sustained",
        title="Sustained",
        version="1",
        severity=Severity.HIGH,
        type="event_count",
        rules=("a",),
        window=Window("tokens", 10),
        file="rule.yaml",
        canonical={},
        thresholds=(("gte", 2),),
    )
    return replace(plain, **changes)


def sample(position: int, hits: str = "", **changes: Any) -> Sample:
    plain = Sample("r1", 1, position, 1_000 + position, {"request_id": "r1"}, frozenset(hits))
    return replace(plain, **changes)


def fired(aggregation: Aggregation, samples: list[Sample]) -> list[tuple[int, str]]:
    return [
        (firing.anchor.position, firing.answer.state.value)
        for one in samples
        for firing in aggregation.add(one)
    ]


def naive(one: AggregationRule, everything: list[Sample]) -> dict[Any, FindingState]:
    """Every anchor's answer, from all samples at once and without any state."""
    distinct = {s.identity: s for s in everything}.values()
    answers: dict[Any, FindingState] = {}
    for anchor in distinct:
        by = (lambda s: (s.position, s.request_id)) if one.window.unit == "tokens" else (
            lambda s: (s.captured_unix_ns, s.request_id, s.started_unix_ns, s.position)
        )  # fmt: skip
        group = naive_group(one, anchor)
        peers = sorted(
            (s for s in distinct if naive_group(one, s) == group and by(s) <= by(anchor)),
            key=by,
        )
        if one.window.unit == "samples":
            window = peers[-one.window.size :]
        else:
            window = [s for s in peers if by(anchor)[0] - by(s)[0] < one.window.size]
        if not naive_ends_a_window(one, anchor, peers, window):
            continue
        answers[anchor.identity] = naive_answer(one, window)
    return answers


def naive_ends_a_window(
    one: AggregationRule, anchor: Sample, peers: list[Sample], window: list[Sample]
) -> bool:
    """At a hit; but a group's first ``min_samples`` samples are one window, if any of them hit."""
    last_step = one.type == "temporal_ordered"
    wanted = set(one.rules[-1:] if last_step else one.rules)
    hit = [bool(wanted & (s.hits | s.unsure)) for s in window]
    waits = "request_id" in one.group_by and one.window.unit != "time"
    if last_step or not waits or len(window) < len(peers) or len(window) > one.min_samples:
        return hit[-1]
    return len(window) == one.min_samples and any(hit)


def naive_openings(one: AggregationRule, samples: list[Sample]) -> set[tuple[str, int, int]]:
    """Where the first ``min_samples`` samples of each request end, if that is one window."""
    if "request_id" not in one.group_by or one.type == "temporal_ordered":
        return set()
    ends = set()
    for request in {s.request_id for s in samples}:
        first = sorted((s for s in samples if s.request_id == request), key=lambda s: s.position)
        first = first[: one.min_samples]
        size = len(first) if one.window.unit == "samples" else (
            first[-1].position - first[0].position + 1
        )  # fmt: skip
        if len(first) == one.min_samples and size <= one.window.size:
            ends.add(first[-1].identity)
    return ends


def naive_group(one: AggregationRule, s: Sample) -> object:
    values = [s.fields.get(key) for key in one.group_by]
    return values if all(values) else ("alone", s.request_id)


def naive_answer(one: AggregationRule, window: list[Sample]) -> FindingState:
    """Tries every way the undecided hits could have come out."""
    unsure = [(i, name) for i, s in enumerate(window) for name in sorted(s.unsure - s.hits)]
    outcomes = set()
    for choice in range(2 ** len(unsure)):
        hits = [set(s.hits) for s in window]
        for bit, (index, name) in enumerate(unsure):
            if choice >> bit & 1:
                hits[index].add(name)
        outcomes.add(naive_holds(one, window, hits))
    if True not in outcomes:
        return NO_MATCH
    return MATCH if outcomes == {True} and len(window) >= one.min_samples else UNDECIDED


def naive_holds(one: AggregationRule, window: list[Sample], hits: list[set[str]]) -> bool:
    if any(names & set(one.absent) for names in hits):
        return False
    if one.type == "temporal":
        return all(any(name in names for names in hits) for name in one.rules)
    if one.type == "temporal_ordered":
        return any(
            all(name in hits[place] for name, place in zip(one.rules, places, strict=True))
            for places in chains(len(one.rules), len(hits))
        )
    with_hit = [s for s, names in zip(window, hits, strict=True) if names & set(one.rules)]
    figure: float = len(with_hit)
    if one.type == "event_rate":
        figure /= len(window)
    if one.type == "value_count":
        figure = len({s.fields.get(one.value_field) for s in with_hit} - {None, ""})
    (name, bound) = one.thresholds[0]
    return figure >= bound if name == "gte" else figure <= bound


def chains(steps: int, size: int) -> list[tuple[int, ...]]:
    """Increasing places for the steps, the last step at the last place."""
    found: list[tuple[int, ...]] = [(size - 1,)]
    for _ in range(steps - 1):
        found = [(place, *chain) for chain in found for place in range(chain[0])]
    return found


windows = st.one_of(
    st.builds(Window, st.just("tokens"), st.integers(1, 25)),
    st.builds(Window, st.just("samples"), st.integers(1, 6)),
    st.builds(Window, st.just("time"), st.integers(1, 25)),
)


@st.composite
def rules_and_samples(draw: st.DrawFn) -> tuple[AggregationRule, list[Sample]]:
    kind = draw(
        st.sampled_from(
            ["event_count", "event_rate", "value_count", "temporal", "temporal_ordered"]
        )
    )
    window = draw(windows)
    steps = kind.startswith("temporal")
    group_by = ("request_id",) if window.unit == "tokens" else draw(
        st.sampled_from([("request_id",), ("session_id",), ("session_id", "tenant")])
    )  # fmt: skip
    bound: float = draw(st.integers(1, 3))
    if kind == "event_rate":
        bound = bound / 4
    one = rule(
        type=kind,
        rules=("a", "b") if steps else draw(st.sampled_from([("a",), ("a", "b")])),
        window=window,
        group_by=group_by,
        thresholds=() if steps else ((draw(st.sampled_from(["gte", "lte"])), bound),),
        value_field="tenant" if kind == "value_count" else "",
        min_samples=draw(st.integers(1, 3)),
        absent=draw(st.sampled_from([(), ("c",)])),
    )
    names = st.frozensets(st.sampled_from("abc"), max_size=2)
    samples: list[Sample] = []
    for request, turn, place in draw(
        st.lists(
            st.tuples(st.sampled_from(["r1", "r2"]), st.just(1), st.integers(0, 60)),
            max_size=14,
            unique=True,
        )
    ):
        fields = {"request_id": request, "tenant": draw(st.sampled_from(["t1", "t2"]))}
        if draw(st.booleans()):
            fields["session_id"] = "s"
        few = sum(1 for s in samples if s.unsure) < 3  # the oracle tries every outcome
        unsure = draw(names) if few and draw(st.booleans()) else frozenset()
        samples.append(Sample(request, turn, place, 1_000 + place, fields, draw(names), unsure))
    return one, samples


# Time windows let old samples go, so late ones are undecided there: see the tests below.
def lateness_free(one: AggregationRule) -> bool:
    return one.window.unit != "time"


@settings(max_examples=40)
@given(case=rules_and_samples(), seed=st.integers(0, 2**32))
def test_in_any_order_and_with_repeats_each_sample_tells_what_the_naive_recount_changes(
    case: tuple[AggregationRule, list[Sample]], seed: int
) -> None:
    one, samples = case
    assume(lateness_free(one))
    stream = samples * 2
    random.Random(seed).shuffle(stream)
    aggregation = Aggregation(one, Counter(), **NO_FLOOR)
    told: dict[tuple[str, int, int], FindingState] = {}
    arrived: list[Sample] = []
    opened: set[tuple[str, int]] = set()  # requests whose first samples were told to match
    for item in stream:
        arrived += [] if item in arrived else [item]
        fired = {f.anchor.identity: f.answer.state for f in aggregation.add(item)}
        openings = naive_openings(one, arrived)
        truth = naive(one, arrived)
        silent = {i for i in openings if (i[0], i[1]) in opened}
        assert fired == news({i: s for i, s in truth.items() if i not in silent}, told)
        told |= fired
        opened |= {
            (s.request_id, s.started_unix_ns)
            for s in arrived
            if s.identity in openings
            and fired.get(s.identity) is MATCH
            and not set(one.rules) & (s.hits | s.unsure)
        }


def news(
    truth: dict[tuple[str, int, int], FindingState], told: dict[tuple[str, int, int], FindingState]
) -> dict[tuple[str, int, int], FindingState]:
    """What is worth telling: a match is never taken back, and "no match" is not told."""
    return {
        identity: state
        for identity, state in truth.items()
        if told.get(identity) is not MATCH and state not in (NO_MATCH, told.get(identity))
    }


@settings(max_examples=40)
@given(case=rules_and_samples())
def test_time_windows_answer_as_the_naive_recount_though_old_samples_are_let_go(
    case: tuple[AggregationRule, list[Sample]],
) -> None:
    one = replace(case[0], window=Window("time", case[0].window.size))
    samples = sorted(
        case[1], key=lambda s: (s.captured_unix_ns, s.request_id, s.started_unix_ns, s.position)
    )
    aggregation = Aggregation(one, Counter(), **NO_FLOOR)
    told = {
        firing.anchor.identity: firing.answer.state
        for item in samples
        for firing in aggregation.add(item)
    }
    truth = naive(one, samples)
    assert told == {identity: s for identity, s in truth.items() if s is not NO_MATCH}


@settings(max_examples=40)
@given(case=rules_and_samples())
def test_in_order_what_fires_is_the_naive_recount(
    case: tuple[AggregationRule, list[Sample]],
) -> None:
    one, samples = case
    order = sorted(samples, key=lambda s: (s.captured_unix_ns, *s.identity))
    aggregation = Aggregation(one, Counter(), **NO_FLOOR)
    emitted = {
        firing.anchor.identity: firing.answer.state
        for item in order
        for firing in (*aggregation.add(item), *aggregation.add(item))
    }
    truth = naive(one, samples)
    assert emitted == {identity: state for identity, state in truth.items() if state != NO_MATCH}


@settings(max_examples=30)
@given(case=rules_and_samples(), seed=st.integers(0, 2**32))
def test_late_and_repeated_samples_of_a_count_fire_as_if_they_had_come_in_order(
    case: tuple[AggregationRule, list[Sample]], seed: int
) -> None:
    one = replace(case[0], type="event_count", thresholds=(("gte", 2),), absent=(), rules=("a",))
    if one.window.unit != "tokens":
        one = replace(one, window=Window("tokens", 9), group_by=("request_id",))
    stream = case[1] * 2
    random.Random(seed).shuffle(stream)
    aggregation = Aggregation(one, Counter())
    fired = [f for s in stream for f in aggregation.add(s) if f.answer.state is MATCH]
    expected = {i for i, state in naive(one, case[1]).items() if state is MATCH}
    # Where a group began may become known late: the same requests fire, perhaps elsewhere.
    assert {f.anchor.request_id for f in fired} == {request for request, *_ in expected}
    assert expected <= {f.anchor.identity for f in fired} or one.min_samples > 1


def test_the_third_hit_inside_the_window_fires() -> None:
    one = rule(window=Window("tokens", 256), thresholds=(("gte", 3),))
    aggregation = Aggregation(one, Counter())
    assert fired(aggregation, [sample(p, "a") for p in (10, 90, 200, 700)]) == [(200, "match")]


def test_hits_too_far_apart_do_not_fire() -> None:
    aggregation = Aggregation(rule(), Counter())
    assert fired(aggregation, [sample(p, "a") for p in (0, 10, 20, 30)]) == []


@pytest.mark.parametrize("last", [3, 9])  # a sample that came late, and one that ends the window
def test_the_first_hits_of_a_group_wait_for_enough_samples(last: int) -> None:
    aggregation = Aggregation(rule(min_samples=3), Counter())
    hits = [sample(2, "a"), sample(5, "a")]
    assert fired(aggregation, hits) == []
    assert aggregation.ended("r1", 1, {"request_id": "r1"})[1].state is UNDECIDED
    assert fired(aggregation, [sample(last)]) == [(max(5, last), "match")]
    assert aggregation.ended("r1", 1, {"request_id": "r1"})[1].state is NO_MATCH


@pytest.mark.parametrize(
    ("late", "again"),
    [("", []), ("a", []), ("", [(9, "match")]), ("a", [(9, "match")])],
)
def test_a_late_sample_of_the_opening_is_not_told_as_a_second_match(
    late: str, again: list[tuple[int, str]]
) -> None:
    aggregation = Aggregation(rule(min_samples=3), Counter())
    assert fired(aggregation, [sample(2, "a"), sample(3, "a"), sample(8)]) == [(8, "match")]
    assert fired(aggregation, [sample(5, late)]) == []
    assert fired(aggregation, [sample(9, "a" if again else "")]) == again


def test_a_first_hit_followed_by_none_leaves_nothing_undecided() -> None:
    aggregation = Aggregation(rule(min_samples=3), Counter())
    assert fired(aggregation, [sample(2, "a"), sample(5), sample(6), sample(7)]) == []
    assert aggregation.ended("r1", 1, {"request_id": "r1"})[1].state is NO_MATCH


def test_a_hit_in_a_window_of_time_is_undecided_though_its_samples_are_let_go() -> None:
    one = rule(window=Window("time", 10), min_samples=4, thresholds=(("gte", 1),))
    samples = [sample(0, "a"), sample(12), *(sample(second) for second in range(25, 60))]
    assert fired(Aggregation(one, Counter()), samples) == [(0, "undecided")]


def test_hits_that_never_get_company_are_undecided() -> None:
    one = rule(min_samples=3, thresholds=(("gte", 1),))
    lonely = [sample(2, "a"), sample(50, "a")]
    assert fired(Aggregation(one, Counter()), lonely) == [(50, "undecided")]


@pytest.mark.parametrize(("samples", "state"), [(0, UNDECIDED), (2, UNDECIDED), (3, NO_MATCH)])
def test_a_request_that_ends_on_too_few_samples_is_undecided(
    samples: int, state: FindingState
) -> None:
    aggregation = Aggregation(rule(min_samples=3), Counter())
    for position in range(samples):
        aggregation.add(sample(position))
    position, answer = aggregation.ended("r1", 1, {"request_id": "r1"})
    assert (position, answer.state) == (max(0, samples - 1), state)


def test_a_gap_inside_a_request_is_undecided_at_its_end() -> None:
    aggregation = Aggregation(rule(min_samples=3), Counter())
    for position in (0, 1, 2, 3, 30, 31, 32, 33):
        aggregation.add(sample(position))
    assert aggregation.ended("r1", 1, {"request_id": "r1"})[1].state is UNDECIDED


def test_requests_without_a_session_are_groups_of_their_own() -> None:
    aggregation = Aggregation(
        rule(group_by=("session_id",), window=Window("samples", 9)), Counter()
    )
    alone = [sample(1, "a", request_id=name) for name in ("r1", "r2")]
    assert fired(aggregation, alone) == []
    known = [replace(s, position=2, fields={"session_id": "s"}) for s in alone]
    assert fired(aggregation, known) == [(2, "match")]


def test_a_sample_behind_what_was_let_go_is_counted_and_undecided() -> None:
    counts: Counter[str] = Counter()
    aggregation = Aggregation(rule(window=Window("time", 10)), counts)
    for captured in (1_000, 1_005, 2_000):
        aggregation.add(sample(captured, "a", captured_unix_ns=captured))
    late = sample(1_004, "a", captured_unix_ns=1_004)
    assert fired(aggregation, [late]) == [(1_004, "undecided")]
    assert counts["late"] == 1


def test_a_time_window_without_a_time_is_undecided() -> None:
    counts: Counter[str] = Counter()
    aggregation = Aggregation(rule(window=Window("time", 10)), counts)
    assert fired(aggregation, [sample(1, "a", captured_unix_ns=0)]) == [(1, "undecided")]
    assert counts == {"no_time": 1}


def test_memory_is_bounded_and_what_goes_is_counted() -> None:
    counts: Counter[str] = Counter()
    one = rule(min_samples=2)
    aggregation = Aggregation(one, counts, max_groups=3, max_group_samples=5, max_samples=12)
    for number in range(20):
        for position in range(20):
            name = f"r{number}"
            aggregation.add(sample(position, request_id=name, fields={"request_id": name}))
    assert counts["groups_let_go"] >= 17
    assert counts["samples_let_go"] > 0
    assert aggregation.held_samples <= 12


def test_a_window_that_reaches_behind_what_was_let_go_is_undecided() -> None:
    aggregation = Aggregation(rule(min_samples=2), Counter(), max_group_samples=2)
    answers = fired(aggregation, [sample(1, "a"), sample(2), sample(3), sample(4, "a")])
    assert answers == [(4, "undecided")]
