"""Scores that come late from the device: nobody who generates waits, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_parts import D_MODEL, LAYER, Bench, ledger_faults, wait_until

from nae_monitor.host_copy import HostCopy
from nae_monitor.pipeline.landing import Landing, Scoring
from nae_monitor.pipeline.turn import Ended, Turn
from nae_monitor.records import (
    Activation,
    Decoding,
    Phase,
    Request,
    RowBatch,
    VerdictState,
)
from nae_monitor.screen import BeginningScreen, ScoredScreen
from nae_monitor.screen.directions import Directions, calibrated
from nae_monitor.settings import ActionSettings, BudgetSettings, ScreenSettings
from nae_monitor.testing import ManualClock
from nae_monitor.token_text import TokenText

MakeBench = Callable[..., Bench]
HIT, LAST = 0, 3  # coordinates: what the bench's judge matches on; what the screen looks for


def directions() -> Directions:
    rows = torch.randn(4_000, D_MODEL, generator=torch.Generator().manual_seed(1))
    rows[:, LAST] *= 0.01
    return calibrated(
        ("last",), torch.eye(D_MODEL)[LAST:], rows, torch.arange(4_000) % 2 == 0,
        base_model="m", layer=LAYER, provenance={},
    )  # fmt: skip


DIRECTIONS = directions()


class Flight:
    """One copy under way: what it holds is not a number until :meth:`arrive`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._content = tensor.clone()
        self._here = threading.Event()
        self.fault: Exception | None = None
        self.waited_in: set[int] = set()  # threads
        self.on_host = torch.full_like(tensor, float("nan"))

    def arrive(self) -> None:
        with torch.inference_mode():  # as it may have been made
            self.on_host.copy_(self._content)
        self._here.set()

    def fail(self, fault: Exception) -> None:
        self.fault = fault
        self._here.set()

    def query(self) -> bool:
        return self._here.is_set()

    def synchronize(self) -> None:
        if not self._here.is_set():
            self.waited_in.add(threading.get_ident())
            self._here.wait(240)
        if self.fault is not None:
            raise self.fault


class Device:
    """Copies that arrive when the test says so. In place of ``to_host``."""

    def __init__(self) -> None:
        self.flights: list[Flight] = []

    def __call__(self, tensor: torch.Tensor) -> HostCopy:
        self.flights.append(Flight(tensor))
        return HostCopy(self.flights[-1].on_host, self.flights[-1])


class Seen:
    """Every judged row, as an observer."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, float]] = []

    def __call__(self, activation: Activation, decoding: Decoding, _: Any) -> None:
        score = activation.scores["last"]
        self.rows.append((activation.request.request_id, activation.position, score))


@pytest.fixture
def device() -> Any:
    made = Device()
    yield made
    for flight in made.flights:  # whoever waits for one would wait on
        flight.arrive()


def rich(bench: MakeBench, copier: Any = None, wait_s: float = 0.0, **options: Any) -> Bench:
    """Pays for every row that stands out, and for none by chance."""
    paid = BudgetSettings(decodes_per_s=1e6, per_request=1_000_000, wait_s=wait_s)
    wanted = ScreenSettings(decode_share=0.01, random_share=0.0, budget=paid)
    given = {} if copier is None else {"copier": copier}
    screen = ScoredScreen(wanted, DIRECTIONS, clock=ManualClock(), **given)
    return bench(screen=screen, budget=paid, **options)


def rows(*strengths: float) -> torch.Tensor:
    found = torch.full((len(strengths), D_MODEL), 0.1)
    found[:, LAST] = torch.tensor(strengths)
    return found


def test_the_scored_screen_begins() -> None:
    assert isinstance(ScoredScreen(ScreenSettings(), DIRECTIONS), BeginningScreen)


@pytest.mark.parametrize("wait_s", [0.0, 30.0])
def test_who_generates_never_waits_and_the_background_thread_takes_what_comes(
    bench: MakeBench, device: Device, wait_s: float
) -> None:
    seen = Seen()
    here = rich(bench, device, wait_s, observer=seen)
    with torch.inference_mode():  # as in `generate`; the background thread is outside
        here.start("r")
        here.vectors("r", range(3), rows(0.0, 5.0, 0.0))
        here.vectors("r", range(3, 6), rows(6.0, 0.0, 0.0))
        here.finish("r")
    assert here.counter("tokens.screened") == 0
    assert here.verdict("r", wait_s=0.0).state is VerdictState.UNDECIDED
    for flight in device.flights:
        flight.arrive()
    assert here.verdict("r").state is VerdictState.CLEAN
    assert [(name, place) for name, place, _ in seen.rows] == [("r", 1), ("r", 3)]
    assert threading.get_ident() not in {t for one in device.flights for t in one.waited_in}


def test_what_has_come_is_taken_with_the_next_batch(bench: MakeBench, device: Device) -> None:
    here = rich(bench, device)
    here.pipeline._queue.refill_by(lambda: False)  # the background thread keeps out of it
    here.start("r")
    here.vectors("r", range(3), rows(0.0, 5.0, 0.0))
    assert here.counter("tokens.screened") == 0
    device.flights[0].arrive()
    here.vectors("r", range(3, 5), rows(0.0, 0.0))
    assert here.counter("tokens.screened") == 3


def test_an_end_waits_for_the_scores_before_it(bench: MakeBench, device: Device) -> None:
    here = rich(bench, device)
    here.start("r")
    here.vectors("r", range(2), rows(5.0, 0.0))
    here.finish("r")
    wait_until(lambda: bool(device.flights[0].waited_in))
    assert here.verdict("r", wait_s=0.0).state is VerdictState.UNDECIDED
    device.flights[0].arrive()
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.CLEAN
    assert ledger_faults(verdict.coverage) == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.sampled_from([0.0, 3.0, 6.0]), max_size=4)),
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_late_scores_choose_what_scores_on_the_spot_choose(
    batches: list[tuple[str, list[float]]], chance: Any
) -> None:
    device = Device()
    told: list[set[tuple[str, int, float]]] = []
    for copier in (None, device):
        seen = Seen()
        here = rich(Bench, copier, observer=seen)
        try:
            for name in "abc":
                here.start(name)
            places = dict.fromkeys("abc", 0)
            for name, strengths in batches:
                if strengths:
                    first = places[name]
                    places[name] += len(strengths)
                    here.vectors(name, range(first, places[name]), rows(*strengths))
                if device.flights and chance.random() < 0.5:
                    chance.choice(device.flights).arrive()
            for name in "abc":
                here.finish(name)
            for flight in device.flights:
                flight.arrive()
            verdicts = [here.verdict(name) for name in "abc"]
            assert [fault for v in verdicts for fault in ledger_faults(v.coverage)] == []
            told.append(set(seen.rows))
        finally:
            here.pipeline.close(20.0)
    assert told[0] == told[1]


def test_scores_that_never_come_are_told_as_lost_and_do_not_hold_up_the_end(
    bench: MakeBench, device: Device
) -> None:
    here = rich(bench, device)
    here.start("r")
    here.vectors("r", range(3), rows(0.0, 5.0, 0.0))
    here.finish("r")
    assert not here.pipeline.close(0.2)
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens == {"closed": 3}
    assert ledger_faults(verdict.coverage) == []


def test_rows_whose_scores_cannot_be_read_are_counted_and_never_clean(
    bench: MakeBench, device: Device
) -> None:
    here = rich(bench, device)
    here.start("r")
    here.vectors("r", range(3), rows(0.0, 5.0, 0.0))
    here.finish("r")
    device.flights[0].fail(RuntimeError("the device is gone"))
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens == {"screen_failed": 3}
    here.start("next")
    here.vectors("next", range(2), rows(5.0, 0.0))
    here.finish("next")
    device.flights[1].arrive()
    assert here.verdict("next").state is VerdictState.CLEAN


def test_scoring_that_cannot_begin_is_counted_and_never_clean(bench: MakeBench) -> None:
    def refuse(_: torch.Tensor) -> HostCopy:
        raise RuntimeError("no pinned memory")

    here = rich(bench, refuse)
    verdict = here.one("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens == {"screen_failed": 3}
    for number in range(10):
        assert here.one(f"r{number}").state is VerdictState.UNDECIDED
    assert here.counter("dropped.screen_circuit_open") > 0  # it is not tried every time


def test_who_may_be_held_for_a_judgement_waits_for_the_scores(
    bench: MakeBench, device: Device
) -> None:
    here = rich(bench, device, actions=ActionSettings(stop_generation="enforce", hold_s=30.0))
    here.start("r")
    generating = threading.Thread(target=lambda: here.vectors("r", range(2), rows(5.0, 0.0)))
    generating.start()
    wait_until(lambda: bool(device.flights) and bool(device.flights[0].waited_in))
    assert generating.is_alive()
    device.flights[0].arrive()
    generating.join(120)
    assert here.counter("tokens.screened") == 2


def landing_of(land: Callable[[Scoring | Ended], None]) -> Landing:
    return Landing(land, lambda look: look())


def test_many_threads_put_in_and_each_ones_order_is_kept() -> None:
    landed: list[tuple[int, int]] = []
    names: dict[Ended, tuple[int, int]] = {}
    landing = landing_of(lambda item: landed.append(names[item]))  # type: ignore[index]

    def put(thread: int) -> None:
        for number in range(200):
            turn = Turn(Request("r", "r", "m"), (), TokenText(None), text_known=False)
            item = Ended(turn)
            names[item] = thread, number
            landing.put(item)
            landing.settle(wait=number % 3 == 0)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(120)
    assert not landing
    for thread in range(4):
        assert [n for t, n in landed if t == thread] == list(range(200))


def test_nothing_overtakes_what_is_on_its_way() -> None:
    device = Device()
    landed: list[object] = []
    landing = landing_of(landed.append)
    batch = RowBatch((Request("r", "r", "m"),), (0,), (0,), (1,), (Phase.PROMPT,), LAYER, rows(1.0))
    turn = Turn(Request("r", "r", "m"), (), TokenText(None), text_known=False)
    first, end = Scoring(batch, {0: turn}, {"r": 1}, device(torch.zeros(1))), Ended(turn)
    assert not landing.is_clear_for(first)
    assert landing.is_clear_for(end)
    landing.put(first)
    assert not landing.is_clear_for(end)
    landing.put(end)
    landing.settle()
    assert landed == []
    device.flights[0].arrive()
    landing.settle()
    assert landed == [first, end]
