"""Rows that wait for the budget, and what a hit buys."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipeline_parts import D_MODEL, LAYER, Bench, ledger_faults, wait_until

from nae_monitor.errors import ConfigurationError
from nae_monitor.health import Health
from nae_monitor.placement.outpost import open_outpost
from nae_monitor.records import Activation, Decoding, Finding, Phase, SampleReason, VerdictState
from nae_monitor.screen import SamplingScreen, ScoredScreen
from nae_monitor.screen.directions import Directions, calibrated
from nae_monitor.settings import BudgetSettings, CaptureSettings, ScreenSettings, Settings
from nae_monitor.testing import ManualClock

MakeBench = Callable[..., Bench]
HIT, LAST = 0, 3  # coordinates: what the bench's judge matches on; what the screen looks for


def directions() -> Directions:
    """Along the last axis, on which ordinary rows have little."""
    rows = torch.randn(4_000, D_MODEL, generator=torch.Generator().manual_seed(1))
    rows[:, LAST] *= 0.01
    return calibrated(
        ("last",), torch.eye(D_MODEL)[LAST:], rows, torch.arange(4_000) % 2 == 0,
        base_model="m", layer=LAYER, provenance={},
    )  # fmt: skip


DIRECTIONS = directions()


class Seen:
    """Every judged row, as an observer."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, SampleReason, str]] = []

    def __call__(self, activation: Activation, decoding: Decoding, _: Any) -> None:
        self.rows.append((activation.position, activation.reason, decoding.text))

    def positions(self, *reasons: SampleReason) -> list[int]:
        return [place for place, reason, _ in self.rows if not reasons or reason in reasons]


def standing_out(*strengths: float) -> torch.Tensor:
    """Rows that lie along the last axis as told, of coordinate 3 by the bench's decoder."""
    found = torch.full((len(strengths), D_MODEL), 0.1)
    found[:, LAST] = torch.tensor(strengths)
    return found


def poor(bench: MakeBench, seen: Seen, **budget: Any) -> Bench:
    """Four decodes at once, and one more every second of the bench's clock."""
    paid = BudgetSettings(**{"decodes_per_s": 1.0, "wait_s": 30.0, **budget})
    wanted = ScreenSettings(decode_share=0.01, random_share=0.0, budget=paid)
    clock = ManualClock()
    screen = ScoredScreen(wanted, DIRECTIONS, clock=clock)
    return bench(screen=screen, budget=paid, clock=clock, observer=seen)


def test_rows_that_find_no_budget_are_bought_later_the_highest_first(bench: MakeBench) -> None:
    seen = Seen()
    here = poor(bench, seen)
    here.start("r")
    here.vectors("r", range(8), standing_out(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    wait_until(lambda: len(seen.rows) == 4)
    assert sorted(seen.positions()) == [4, 5, 6, 7]
    for expected in (3, 2):
        here.clock.advance(1.0)
        count = len(seen.rows)
        wait_until(lambda count=count: len(seen.rows) > count)  # type: ignore[misc]
        assert seen.positions()[-1] == expected


def test_a_verdict_waits_for_the_rows_that_wait(bench: MakeBench) -> None:
    seen = Seen()
    here = poor(bench, seen)
    here.start("r")
    here.vectors("r", range(5), standing_out(*[0.5] * 5))
    here.finish("r")
    wait_until(lambda: len(seen.rows) == 4)
    assert here.verdict("r", wait_s=0.0).state is VerdictState.UNDECIDED
    here.clock.advance(1.0)
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.CLEAN
    assert (verdict.coverage.judged_tokens, ledger_faults(verdict.coverage)) == (5, [])


def test_what_waited_too_long_is_passed_over_counted_and_holds_no_verdict(bench: MakeBench) -> None:
    here = poor(bench, Seen(), wait_s=3.0, decodes_per_s=0.05)
    here.start("r")
    here.vectors("r", range(6), standing_out(*[0.5] * 6))
    here.finish("r")
    here.settled()
    here.clock.advance(3.5)
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.CLEAN  # of the one row that was paid
    assert verdict.coverage.judged_tokens == 1
    assert here.counter("screen.passed_over") == 5
    assert ledger_faults(verdict.coverage) == []


def test_a_request_that_has_had_its_share_waits_for_nothing(bench: MakeBench) -> None:
    here = poor(bench, Seen(), per_request=2)
    here.start("r")
    for start in (0, 6):
        here.vectors("r", range(start, start + 6), standing_out(*[0.5] * 6))
    here.finish("r")
    assert here.verdict("r").coverage.judged_tokens == 2


def test_closing_leaves_nobody_waiting(bench: MakeBench) -> None:
    here = poor(bench, Seen())
    here.start("r")
    here.vectors("r", range(9), standing_out(*[0.5] * 9))
    here.finish("r")
    assert here.pipeline.close(20.0)
    (verdict,) = here.pipeline.verdict("r", 0.0)
    assert verdict.state is VerdictState.CLEAN
    assert here.counter("screen.passed_over") == 5


def test_a_further_turn_does_not_wait_for_the_rows_of_the_one_before(bench: MakeBench) -> None:
    here = poor(bench, Seen())
    for turn in (0, 1):
        here.start("r")
        here.vectors("r", range(10 * turn, 10 * turn + 9), standing_out(*[0.5] * 9))
        here.finish("r")
    here.clock.advance(60.0)
    verdict = here.verdict("r")
    assert (verdict.state, ledger_faults(verdict.coverage)) == (VerdictState.CLEAN, [])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_holds_none_of_its_parents_rows(bench: MakeBench) -> None:
    here = poor(bench, Seen())
    here.start("r")
    here.vectors("r", range(9), standing_out(*[0.5] * 9))
    patience = here.pipeline._serving._patience
    with patience._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(1 if patience.release() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- what a hit buys --------------------------------------------------------------------------


def sampling(bench: MakeBench, seen: Seen, **budget: Any) -> Bench:
    """Every eighth token, and what follows a hit."""
    paid = BudgetSettings(**{"decodes_per_s": 1e6, "per_request": 1000, **budget})
    wanted = ScreenSettings(every_n_tokens=8, random_share=0.0, budget=paid)
    screen = SamplingScreen(wanted, clock=ManualClock())
    return bench(screen=screen, budget=paid, observer=seen)


def test_a_hit_buys_the_tokens_beside_it_and_texts_of_its_own(bench: MakeBench) -> None:
    seen = Seen()
    here = sampling(bench, seen, neighbours=2, resamples=3)
    here.start("r", prompt_tokens=24)
    hit = torch.eye(D_MODEL)[LAST].repeat(24, 1)
    hit[8] = torch.eye(D_MODEL)[HIT]
    here.vectors("r", range(24), hit)
    here.finish("r")
    verdict = here.verdict("r")
    assert seen.positions(SampleReason.EVERY_N) == [0, 8, 16]
    assert sorted(seen.positions(SampleReason.NEIGHBOUR)) == [6, 7, 9, 10]
    assert seen.positions(SampleReason.RESAMPLE) == [8, 8, 8]
    assert (verdict.state, ledger_faults(verdict.coverage)) == (VerdictState.ALERT, [])
    assert verdict.coverage.judged_tokens == 10


def test_without_a_hit_nothing_follows(bench: MakeBench) -> None:
    seen = Seen()
    here = sampling(bench, seen, neighbours=2, resamples=3)
    here.one("r", range(24))
    assert seen.positions() == [0, 8, 16]


def test_neighbours_that_are_generated_later_are_bought_too(bench: MakeBench) -> None:
    seen = Seen()
    here = sampling(bench, seen, neighbours=2)
    here.start("r", prompt_tokens=8)
    for place in range(8, 16):
        coordinate = HIT if place == 8 else LAST
        here.rows("r", [place], coordinate, Phase.COMPLETION)
        here.settled()
    here.finish("r")
    here.verdict("r")
    assert sorted(seen.positions(SampleReason.NEIGHBOUR)) == [9, 10]


def test_what_follows_a_hit_stays_within_the_budget_of_its_request(bench: MakeBench) -> None:
    seen = Seen()
    here = sampling(bench, seen, neighbours=4, resamples=4, per_request=5)
    here.one("r", range(24), coordinate=HIT)
    assert len(seen.rows) == 5
    assert here.counter("screen.passed_over") > 0


def test_samples_are_asked_for_with_seeds_and_nothing_else_is(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = sampling(bench, Seen(), resamples=2)
    asked: list[tuple[int, Any]] = []
    plain = here.decoder.decode

    def decode(vectors: torch.Tensor, *, seeds: Any = None) -> list[Decoding]:
        asked.append((len(vectors), seeds))
        return plain(vectors, seeds=seeds)

    monkeypatch.setattr(here.decoder, "decode", decode)
    here.one("r", [0], coordinate=HIT)
    assert asked == [(1, None), (2, [1, 2])]


def test_held_neighbours_are_bounded_and_go_with_their_turn(bench: MakeBench) -> None:
    paid = BudgetSettings(decodes_per_s=1e6, per_request=1000, neighbours=3)
    wanted = ScreenSettings(every_n_tokens=8, random_share=0.0, budget=paid)
    here = bench(
        screen=SamplingScreen(wanted, clock=ManualClock()), budget=paid,
        capture=CaptureSettings(min_position=0, queue_bytes=40_000),
    )  # fmt: skip
    follow_ups = here.pipeline._serving.follow_ups
    for number in range(4):
        here.start(f"r{number}", prompt_tokens=16)
        here.rows(f"r{number}", range(16))
        here.settled()
        assert follow_ups._bytes <= 20_000
    assert here.counter("screen.neighbours_let_go") > 0
    for number in range(4):
        here.finish(f"r{number}")
        here.verdict(f"r{number}")
    here.settled()
    assert (follow_ups._bytes, follow_ups._held) == (0, {})


def test_an_informational_finding_is_no_hit(bench: MakeBench) -> None:
    seen = Seen()
    here = sampling(bench, seen, resamples=2)
    judge = here.judge.judge

    def mild(*given: Any) -> tuple[Finding, ...]:
        from dataclasses import replace

        from nae_monitor.records import Severity

        return tuple(replace(f, severity=Severity.INFORMATIONAL) for f in judge(*given))

    here.judge.judge = mild
    here.one("r", [0], coordinate=HIT)
    assert seen.positions() == [0]


@pytest.mark.parametrize("placement", ["ipc", "kafka"])
def test_what_cannot_be_bought_where_workers_decode_is_refused(placement: Any) -> None:
    settings = Settings(
        capture=CaptureSettings(placement=placement),
        screen=ScreenSettings(budget=BudgetSettings(neighbours=1)),
    )
    with pytest.raises(ConfigurationError, match="what follows a hit"):
        open_outpost(settings, Health())
