"""Turns, groups, ids used twice, and what is remembered of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from pipeline_parts import Bench, ledger_faults, wait_until

from nae_monitor.pipeline import requests as module
from nae_monitor.records import Phase, Transcript, VerdictState
from nae_monitor.settings import CaptureSettings

Make = Callable[..., Bench]


def test_an_alert_of_the_turn_before_stays_though_it_was_still_in_the_queue(bench: Make) -> None:
    here = bench()
    here.decoder.released.clear()
    here.start("r")
    here.rows("r", [0], coordinate=0)
    here.finish("r")
    here.start("r", prompt_tokens=6)  # the next turn, before anything of the first was judged
    here.rows("r", [4], coordinate=3)
    here.finish("r")
    here.decoder.released.set()
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.ALERT
    assert len(verdict.findings) == 1
    assert verdict.coverage.judged_tokens == 2
    assert not ledger_faults(verdict.coverage)


def test_a_finished_turn_gives_no_verdict_while_the_next_is_under_way(bench: Make) -> None:
    here = bench()
    here.decoder.released.clear()
    here.start("r")
    here.rows("r", [0])
    here.finish("r")
    here.start("r", prompt_tokens=6)
    here.decoder.released.set()
    here.settled()
    verdict = here.verdict("r", wait_s=0.0)
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.reasons == ("it is not finished",)
    here.rows("r", [4])
    here.finish("r")
    assert here.verdict("r").state is VerdictState.CLEAN


def test_a_further_turn_takes_the_verdict_back_and_keeps_the_findings(bench: Make) -> None:
    here = bench()
    assert here.one("r", coordinate=0).state is VerdictState.ALERT
    here.start("r", prompt_tokens=6)
    here.rows("r", [4])
    here.finish("r")
    here.settled()
    assert here.verdict("r").state is VerdictState.ALERT


def test_a_loss_in_an_earlier_turn_stays_a_loss(bench: Make) -> None:
    here = bench()
    here.decoder.faults = [RuntimeError()]
    here.one("r")
    assert here.one("r", positions=(4, 5)).state is VerdictState.UNDECIDED


def test_an_unfinished_request_with_a_match_is_an_alert_already(bench: Make) -> None:
    here = bench()
    here.start("r")
    here.rows("r", [0], coordinate=0)
    wait_until(lambda: here.counter("tokens.judged") == 1)
    assert here.verdict("r", wait_s=0.0).state is VerdictState.ALERT


def test_an_id_in_use_twice_at_once_is_never_clean_and_no_text_is_told(bench: Make) -> None:
    here = bench()
    here.start("r")
    here.start("r")
    here.rows("r", [0, 1])
    here.finish("r")
    here.rows("r", [2])
    here.finish("r")
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.reasons == ("its id was in use twice at once (1 times)",)
    assert verdict.coverage.judged_tokens == 3
    assert here.judge.transcripts["r", 0] == Transcript(None, "")


def test_the_transcript_ends_at_the_judged_token(bench: Make) -> None:
    here = bench()
    here.start("r", prompt_tokens=3)
    here.rows("r", [0, 2])
    here.listener.tokens("r", (3, 4))
    here.rows("r", [3], phase=Phase.COMPLETION)
    here.listener.tokens("r", (5,))
    here.rows("r", [5], phase=Phase.COMPLETION)
    here.finish("r")
    here.verdict("r")
    assert here.judge.transcripts == {
        ("r", 0): Transcript("abc", ""),
        ("r", 2): Transcript("abc", ""),
        ("r", 3): Transcript("abc", "d"),
        ("r", 5): Transcript("abc", "def"),
    }


def test_tokens_in_a_cache_filled_out_of_sight_leave_the_text_unknown(bench: Make) -> None:
    here = bench()
    for name in ("tokens.seen", "tokens.cached"):
        here.health.count(name, 2, request_id="r")
    verdict = here.one("r", positions=(2, 3, 4))
    assert here.judge.transcripts["r", 4].prompt is None
    assert not ledger_faults(verdict.coverage)


def test_a_group_has_the_worst_verdict_of_its_sequences(bench: Make) -> None:
    here = bench()
    for i in range(3):
        here.start(f"g#{i}", group_id="g")
        here.rows(f"g#{i}", [0], coordinate=0 if i == 1 else 3, group_id="g")
    assert here.verdict("g", wait_s=0.0).state is not VerdictState.CLEAN
    for i in range(3):
        here.finish(f"g#{i}")
    whole = here.verdict("g")
    assert whole.state is VerdictState.ALERT
    assert whole.coverage.judged_tokens == 3
    assert here.verdict("g#0").state is VerdictState.CLEAN


def test_a_group_with_an_unfinished_sequence_is_not_clean(bench: Make) -> None:
    here = bench()
    here.start("g#0", group_id="g")
    here.start("g#1", group_id="g")
    here.rows("g#0", [0], group_id="g")
    here.finish("g#0")
    here.settled()
    verdict = here.verdict("g", wait_s=0.0)
    assert verdict.state is VerdictState.UNDECIDED
    assert "g#1: it is not finished" in verdict.reasons


def test_waiting_for_a_verdict_ends_when_it_is_there(bench: Make) -> None:
    here = bench()
    here.start("r")
    here.rows("r", [0])
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(here.verdict("r", wait_s=60.0)))
    waiting.start()
    here.finish("r")
    waiting.join(20.0)
    assert got[0].state is VerdictState.CLEAN


def test_finished_requests_are_forgotten_oldest_first(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VERDICT_LIMIT", 3)
    here = bench()
    for i in range(5):
        here.one(f"r{i}")
    assert [here.verdict(f"r{i}", wait_s=0.0).state.value for i in range(5)] == [
        "undecided", "undecided", "clean", "clean", "clean",
    ]  # fmt: skip
    known = here.pipeline._requests
    assert len(known._done) == len(known._groups) == 3


def test_a_group_that_lost_a_sequence_to_forgetting_is_never_clean(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VERDICT_LIMIT", 2)
    here = bench()
    for name in ("g#0", "g#1", "g#2"):
        here.start(name, group_id="g")
        here.rows(name, [0], group_id="g")
        here.finish(name)
        here.verdict(name)
    verdict = here.verdict("g")
    assert verdict.state is VerdictState.UNDECIDED
    assert "g: sequences of it were forgotten" in verdict.reasons


def test_requests_that_never_finish_are_given_up_oldest_first(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIVE_LIMIT", 3)
    here = bench()
    for i in range(5):
        here.start(f"r{i}")
    assert len(here.pipeline._requests._live) == 3
    assert here.verdict("r0").reasons[-1] == "too many requests were under way (1 times)"
    here.rows("r0", [0])
    assert here.counter("dropped.unknown_request") == 1


def test_a_request_whose_ledger_was_forgotten_is_not_clean(bench: Make) -> None:
    here = bench()
    here.health._ledger_limit = 2
    here.start("r")
    here.rows("r", [0])
    for i in range(3):
        here.health.count("tokens.seen", request_id=f"other{i}")
    here.rows("r", [1])
    here.finish("r")
    verdict = here.verdict("r")
    assert verdict.state is VerdictState.UNDECIDED
    assert "its ledger was forgotten: too many requests since" in verdict.reasons


def test_an_unknown_request_is_undecided_after_the_wait(bench: Make) -> None:
    started_s = time.monotonic()
    assert bench().verdict("never", wait_s=0.05).state is VerdictState.UNDECIDED
    assert time.monotonic() - started_s >= 0.05


def test_threads_that_generate_at_once_keep_their_rows_apart(bench: Make) -> None:
    here = bench(capture=CaptureSettings(min_position=0))

    def serve(name: str) -> None:
        for turn in range(20):
            request_id = f"{name}/{turn}"
            here.start(request_id)
            for position in range(5):
                here.rows(request_id, [position], coordinate=0 if name == "bad" else 3)
            here.finish(request_id)

    threads = [threading.Thread(target=serve, args=(name,)) for name in ("bad", "good", "fine")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, state in (("bad", "alert"), ("good", "clean"), ("fine", "clean")):
        for turn in range(20):
            verdict = here.verdict(f"{name}/{turn}")
            assert verdict.state.value == state
            assert verdict.coverage.judged_tokens == 5
            assert not ledger_faults(verdict.coverage)
