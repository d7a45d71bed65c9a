"""A stage that fails is counted under a reason, is never called clean, and is told of once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipeline_parts import (
    D_MODEL,
    Bench,
    ScriptedScreen,
    ledger_faults,
    wait_until,
)

from nae_monitor.errors import EngineError
from nae_monitor.health import CIRCUIT_LIMIT
from nae_monitor.pipeline.blindness import REPEAT_S
from nae_monitor.pipeline.circuit import RETRY_S
from nae_monitor.records import Choice, SampleReason, VerdictState
from nae_monitor.settings import CaptureSettings, PolicySettings

Make = Callable[..., Bench]


def test_a_request_that_was_looked_at_and_lost_nothing_is_clean(bench: Make) -> None:
    verdict = bench().one("r")
    assert verdict.state is VerdictState.CLEAN
    assert verdict.coverage.judged_tokens == 3
    assert not ledger_faults(verdict.coverage)


def test_a_match_is_an_alert_with_its_evidence(bench: Make) -> None:
    here = bench()
    assert here.one("r", coordinate=0).state is VerdictState.ALERT
    (alert,) = here.sink.alerts
    assert (alert.count, alert.first_position, alert.last_position) == (3, 0, 2)
    assert alert.evidence[0].token == "a"


def test_a_rule_that_cannot_say_leaves_the_request_undecided(bench: Make) -> None:
    verdict = bench().one("r", coordinate=1)
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.reasons == ("rule rule could not decide",)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (RuntimeError("prompt text"), "decode_failed"),
        (MemoryError(), "decode_failed"),
        (EngineError("prompt text"), "engine"),
    ],
)
def test_a_failed_decode_drops_its_rows_and_is_told(
    bench: Make, fault: Exception, reason: str
) -> None:
    here = bench()
    here.decoder.faults = [fault]
    verdict = here.one("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens == {reason: 3}
    assert not ledger_faults(verdict.coverage)
    wait_until(lambda: bool(here.blind_alerts()))
    assert here.blind_alerts() == [f"Monitor is blind: decode (3 rows dropped: {reason})"]
    assert "prompt text" not in str(here.sink.alerts)


def test_too_few_decodings_are_a_failed_decode(bench: Make) -> None:
    here = bench()
    whole = here.decoder.decode
    here.decoder.decode = lambda vectors, **_: whole(vectors)[1:]  # type: ignore[method-assign]
    assert here.one("r").coverage.dropped_tokens == {"decode_failed": 3}


def test_a_blind_component_is_told_once_and_again_after_it_has_worked(bench: Make) -> None:
    here = bench()
    here.decoder.faults = [RuntimeError(), RuntimeError()]
    here.one("a")
    here.one("b")
    wait_until(lambda: len(here.blind_alerts()) == 1)
    here.one("c")
    here.clock.advance(REPEAT_S)
    here.decoder.faults = [RuntimeError()]
    here.one("d")
    wait_until(lambda: len(here.blind_alerts()) == 2)


def test_a_component_that_flaps_is_not_told_at_every_turn(bench: Make) -> None:
    here = bench()
    for i in range(6):
        here.decoder.faults = [RuntimeError()]
        here.one(f"bad{i}")
        here.one(f"good{i}")
    here.settled()
    assert len(here.blind_alerts()) == 1
    wait_until(lambda: here.counter("alerts.monitor_blind_held_back") >= 1)


def test_a_decoder_that_keeps_failing_is_only_tried_now_and_then(bench: Make) -> None:
    here = bench()
    here.decoder.faults = [RuntimeError()] * 100
    for i in range(CIRCUIT_LIMIT):
        here.one(f"r{i}")
    assert here.decoder.calls == CIRCUIT_LIMIT
    verdict = here.one("held")
    assert verdict.coverage.dropped_tokens == {"decode_circuit_open": 3}
    assert verdict.state is VerdictState.UNDECIDED
    assert here.decoder.calls == CIRCUIT_LIMIT
    here.clock.advance(RETRY_S)
    assert here.one("trial").coverage.dropped_tokens == {"decode_failed": 3}
    assert here.one("held again").coverage.dropped_tokens == {"decode_circuit_open": 3}
    here.clock.advance(RETRY_S)
    here.decoder.faults = []
    assert here.one("well").state is VerdictState.CLEAN
    assert here.one("still well").state is VerdictState.CLEAN
    assert not here.health.is_open("decode")


def test_a_screen_that_fails_drops_the_batch_and_never_raises(bench: Make) -> None:
    screen = ScriptedScreen()
    here = bench(screen=screen)
    screen.faults = [RuntimeError()]
    verdict = here.one("r")
    assert verdict.coverage.dropped_tokens == {"screen_failed": 3}
    assert verdict.coverage.screened_tokens == 0
    assert verdict.state is VerdictState.UNDECIDED
    assert not ledger_faults(verdict.coverage)
    wait_until(lambda: here.blind_alerts() == ["Monitor is blind: screen (it fails)"])


def test_a_screen_that_keeps_failing_is_left_alone_until_a_trial(bench: Make) -> None:
    screen = ScriptedScreen()
    here = bench(screen=screen)
    screen.faults = [RuntimeError()] * CIRCUIT_LIMIT
    for i in range(CIRCUIT_LIMIT):
        here.one(f"r{i}")
    assert here.one("held").coverage.dropped_tokens == {"screen_circuit_open": 3}
    assert screen.calls == CIRCUIT_LIMIT
    here.clock.advance(RETRY_S)
    assert here.one("well").state is VerdictState.CLEAN


def test_a_screen_that_names_a_row_which_is_not_there_has_failed(bench: Make) -> None:
    class Wild:
        def choose(self, batch: Any) -> list[Choice]:
            return [Choice(len(batch), SampleReason.SCORE)]

    verdict = bench(screen=Wild()).one("r")
    assert verdict.coverage.dropped_tokens == {"screen_failed": 3}


def test_a_judge_that_fails_drops_that_row_only(bench: Make) -> None:
    here = bench()
    here.judge.faults = [None, RuntimeError()]
    verdict = here.one("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens == {"judge_failed": 1}
    assert verdict.coverage.judged_tokens == 2
    assert not ledger_faults(verdict.coverage)
    wait_until(lambda: here.counter("alerts.monitor_blind_held_back") == 1)


def test_a_sink_that_fails_loses_the_alert_but_not_the_verdict(bench: Make) -> None:
    here = bench()
    here.sink.faults = [RuntimeError()]
    assert here.one("r", coordinate=0).state is VerdictState.ALERT
    assert here.counter("alerts.lost") == 1
    assert here.one("s", coordinate=0).state is VerdictState.ALERT
    assert here.counter("alerts.emitted") == 1


def test_an_observer_that_fails_changes_nothing_and_is_left_alone(bench: Make) -> None:
    seen = []

    def observer(*row: Any) -> None:
        seen.append(row)
        raise RuntimeError

    here = bench(observer=observer)
    for i in range(4):
        assert here.one(f"r{i}").state is VerdictState.CLEAN
    here.settled()
    assert len(seen) == CIRCUIT_LIMIT


def test_a_tokenizer_that_fails_leaves_the_text_unknown(bench: Make) -> None:
    class Broken:
        def decode(self, token_ids: list[int], **_: Any) -> str:
            raise RuntimeError("secret")

    here = bench(tokenizer=Broken())
    here.one("r")
    assert here.judge.transcripts["r", 0].prompt is None
    assert here.counter("tokens.judged") == 3


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "bad_vector_non_finite"),
        (float("inf"), "bad_vector_non_finite"),
        (1e6, "bad_vector_non_finite"),  # more than float16 holds
        (0.0, "bad_vector_zero"),
    ],
)
def test_a_vector_that_cannot_be_decoded_costs_no_other_row(
    bench: Make, value: float, reason: str
) -> None:
    here = bench()
    vectors = torch.eye(D_MODEL)[[3, 3, 3]].clone()
    vectors[1] = value
    here.start("r")
    here.vectors("r", [0, 1, 2], vectors)
    here.finish("r")
    verdict = here.verdict("r")
    assert verdict.coverage.dropped_tokens == {reason: 1}
    assert verdict.coverage.judged_tokens == 2
    assert verdict.state is VerdictState.UNDECIDED


def test_vectors_of_another_width_are_dropped_beside_good_ones(bench: Make) -> None:
    here = bench()
    here.decoder.released.clear()
    here.start("r")
    here.vectors("r", [0], torch.ones(1, D_MODEL + 1))
    here.rows("r", [1, 2])
    here.finish("r")
    here.decoder.released.set()
    verdict = here.verdict("r")
    assert verdict.coverage.dropped_tokens == {"bad_vector_width": 1}
    assert verdict.coverage.judged_tokens == 2


def test_a_copy_that_fails_is_counted(bench: Make) -> None:
    here = bench()
    here.start("r")
    here.vectors("r", [0, 1, 2], torch.ones(2, D_MODEL))  # one vector is missing
    here.finish("r")
    verdict = here.verdict("r")
    assert verdict.coverage.dropped_tokens == {"copy_failed": 3}
    assert not ledger_faults(verdict.coverage)


def test_a_full_queue_drops_and_counts(bench: Make) -> None:
    here = bench(capture=CaptureSettings(min_position=0, queue_bytes=2500))
    here.decoder.released.clear()
    here.start("r", prompt_tokens=40)
    here.rows("r", range(40))
    here.finish("r")
    here.decoder.released.set()
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens["queue_full"] >= 34
    assert not ledger_faults(verdict.coverage)


def test_rows_that_waited_too_long_expire(bench: Make) -> None:
    here = bench()
    here.decoder.released.clear()
    here.start("other")
    here.rows("other", [0])
    here.decoder.entered.wait(120)
    here.start("r")
    here.rows("r", [0, 1])
    here.finish("r")
    here.clock.advance(61)
    here.decoder.released.set()
    verdict = here.verdict("r")
    assert verdict.coverage.dropped_tokens == {"expired": 2}
    assert verdict.state is VerdictState.UNDECIDED


def test_rows_of_a_request_that_never_started_are_counted_and_change_nothing(bench: Make) -> None:
    here = bench()
    here.rows("stranger", [0, 1])
    here.listener.tokens("stranger", (1, 2))
    here.finish("stranger")
    assert here.counter("dropped.unknown_request") == 2
    assert here.counter("tokens.sampled") == 0
    assert here.verdict("stranger", wait_s=0.0).state is VerdictState.UNDECIDED
    assert here.one("r").state is VerdictState.CLEAN


def test_a_row_that_went_uncounted_keeps_a_request_from_being_clean(bench: Make) -> None:
    here = bench(policy=PolicySettings(min_screened_share=0.5))
    here.health.count("tokens.seen", 1, request_id="r")  # seen, and never heard of again
    verdict = here.one("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.reasons == ("its ledger does not balance: tokens went uncounted",)


def test_an_open_circuit_of_the_capture_stage_is_told(bench: Make) -> None:
    here = bench()
    for _ in range(CIRCUIT_LIMIT):
        here.health.failed("capture.rows", RuntimeError())
    wait_until(lambda: bool(here.blind_alerts()))
    assert here.blind_alerts() == ["Monitor is blind: capture.rows (its circuit is open)"]


def test_a_model_whose_layer_is_never_seen_is_told(bench: Make) -> None:
    here = bench()
    here.health.count("blind.no_rows")
    wait_until(lambda: bool(here.blind_alerts()))
    assert "capture.unseen" in here.blind_alerts()[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_is_torn_down_says_so_and_leaves_nobody_waiting(bench: Make) -> None:
    here = bench()
    here.decoder.faults = [SystemExit()]
    verdict = here.one("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.coverage.dropped_tokens == {"worker_ended": 3}
    assert here.blind_alerts() == ["Monitor is blind: worker (its thread ended)"]
    thread = here.pipeline._thread
    assert thread is not None
    thread.join(20.0)
    here.start("later")
    here.rows("later", [0])
    assert here.counter("dropped.closed") == 1
    assert here.pipeline.close(1.0) is False
