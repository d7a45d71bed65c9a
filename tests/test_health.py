"""Health: nothing that happens, or fails to, goes uncounted, and nothing passes the guard."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.health import CIRCUIT_LIMIT, Health


class SensitiveError(Exception):
    pass


def fail(health: Health, times: int, component: str = "screen") -> None:
    for _ in range(times):
        with health.guard(component):
            raise SensitiveError("the user's prompt")


def test_a_failure_is_swallowed_and_counted_by_its_type() -> None:
    health = Health()
    fail(health, 1)
    assert health.counters()["failed.screen.SensitiveError"] == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_passes_the_guard(kind: type[BaseException]) -> None:
    with pytest.raises(kind), Health().guard("screen"):
        raise kind


def test_five_failures_in_a_row_open_the_circuit() -> None:
    health = Health()
    fail(health, CIRCUIT_LIMIT - 1)
    assert not health.is_open("screen")
    fail(health, 1)
    assert health.is_open("screen")
    assert not health.is_open("alert")
    assert health.counters()["circuit_open.screen"] == 1


def test_a_success_ends_the_row() -> None:
    health = Health()
    for _ in range(10):
        fail(health, CIRCUIT_LIMIT - 1)
        with health.guard("screen"):
            pass
    assert not health.is_open("screen")


def test_messages_of_exceptions_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fail(Health(), CIRCUIT_LIMIT)
    assert "Sensitive" in caplog.text
    assert "prompt" not in caplog.text


def test_a_lasting_failure_is_logged_twice_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    fail(Health(), 100)
    assert len(caplog.records) == 2


def test_the_ledger_of_a_request_becomes_its_coverage() -> None:
    health = Health()
    for name, amount in (("seen", 9), ("excluded", 2), ("screened", 6), ("decoded", 3)):
        health.count(f"tokens.{name}", amount, request_id="r")
    health.count("dropped.queue_full", 2, request_id="r")
    health.count("dropped.queue_full", 5, request_id="other")
    coverage = health.coverage("r")
    assert (coverage.seen_tokens, coverage.excluded_tokens) == (9, 2)
    assert (coverage.screened_tokens, coverage.decoded_tokens) == (6, 3)
    assert coverage.dropped_tokens == {"queue_full": 2}
    assert health.counters()["dropped.queue_full"] == 7


def test_an_unknown_request_has_seen_nothing() -> None:
    assert Health().coverage("never").seen_tokens == 0


@given(st.lists(st.sampled_from("abcdef"), max_size=60))
def test_the_oldest_ledger_is_forgotten_first_and_totals_stay(requests: list[str]) -> None:
    health = Health(ledger_limit=3)
    for request in requests:
        health.count("tokens.seen", request_id=request)
    assert health.counters().get("tokens.seen", 0) == len(requests)
    kept = [r for r in "abcdef" if health.coverage(r).seen_tokens]
    assert len(kept) <= 3
    if requests:
        assert requests[-1] in kept


def test_counts_of_many_threads_add_up() -> None:
    health = Health()

    def work() -> None:
        for _ in range(500):
            health.count("tokens.seen", 2, request_id="r")
            fail(health, 1, "decode")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert health.coverage("r").seen_tokens == 4000
    assert health.counters()["failed.decode.SensitiveError"] == 2000
    assert health.counters()["circuit_open.decode"] == 1


def test_counters_are_a_copy() -> None:
    health = Health()
    health.count("a")
    before = health.counters()
    health.count("a")
    assert before == {"a": 1}


def test_what_another_process_counted_is_in_the_requests_ledger_alone() -> None:
    health = Health()
    health.count("tokens.seen", 3, request_id="r1")
    health.add_to_ledger("r1", {"tokens.seen": 2, "dropped.late": 1})
    coverage = health.coverage("r1")
    assert (coverage.seen_tokens, dict(coverage.dropped_tokens)) == (5, {"late": 1})
    assert health.counters() == {"tokens.seen": 3}
