"""Serving processes and workers over ZeroMQ: what is judged, and what the answers say."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

from placement_parts import (
    alerts,
    configuration,
    server,
    titles,
    wait_until,
    worker_process,
)

from nae_monitor.records import Phase, VerdictState
from nae_monitor.settings import ActionSettings, PolicySettings
from nae_monitor.verdicts import is_balanced


def test_a_request_without_hits_is_clean_by_the_counts_of_both_processes(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one:
        verdict = one.one("r1")
        assert verdict.state is VerdictState.CLEAN, verdict
        coverage = verdict.coverage
        assert (coverage.seen_tokens, coverage.screened_tokens, coverage.judged_tokens) == (3, 3, 3)
        assert one.outpost.close(30.0)
        assert worker.end()["tokens.judged"] == 3


def test_a_token_is_counted_by_the_process_that_did_the_work_and_by_no_other(
    tmp_path: Path,
) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one:
        coverage = one.one("r1").coverage
        assert (coverage.seen_tokens, coverage.decoded_tokens, coverage.judged_tokens) == (3, 3, 3)
        assert one.outpost.close(30.0)
        serving, working = one.health.counters(), worker.end()
    counted = {n for n in {*serving, *working} if n.startswith(("tokens.", "dropped."))}
    assert {"tokens.seen", "tokens.decoded", "tokens.judged"} <= counted
    assert {n for n in counted if serving.get(n) and working.get(n)} == set()
    assert serving["tokens.seen"] == working["tokens.judged"] == 3


def test_findings_of_the_worker_come_back_and_its_alert_goes_out(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one:
        verdict = one.one("r1", coordinate=0)
        assert verdict.state is VerdictState.ALERT
        assert [f.rule_name for f in verdict.findings] == ["first_coordinate"] * 3
        assert one.outpost.close(30.0)
        worker.end()
    assert titles(tmp_path) == ["The first coordinate is the largest"]
    assert alerts(tmp_path)[0]["data"]["unmapped"]["nae.stop"] == "would_block"


def test_rules_read_the_output_as_far_as_it_was_when_the_row_was_taken(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings), server(settings) as one:
        one.start("r1")
        one.generate("r1", [0, 1, 2], coordinate=1)  # "a", "ab", "abc"
        one.finish("r1")
        verdict = one.verdict("r1")
        found = [f.position for f in verdict.findings if f.rule_name == "output_letter"]
        assert found == [4, 5]


def test_further_turns_of_a_request_add_to_what_was_found_before(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings), server(settings) as one:
        assert one.one("r1", coordinate=0).state is VerdictState.ALERT
        again = one.one("r1")
        assert again.state is VerdictState.ALERT
        assert len(again.findings) == 3
        assert again.coverage.judged_tokens == 6
        assert is_balanced(again.coverage)


def test_an_order_to_stop_reaches_the_serving_process_and_its_outcome_the_alert(
    tmp_path: Path,
) -> None:
    settings = configuration(tmp_path, actions=ActionSettings(stop_generation="enforce"))
    with worker_process(settings) as worker, server(settings) as one:
        one.start("r1")
        one.rows("r1", (0, 1, 2))
        one.generate("r1", [0], coordinate=0)
        assert one.outpost.brake.enforces
        wait_until(lambda: one.outpost.brake.should_stop("r1"))
        assert one.outpost.brake.stops("r1", 5, 2)
        one.outpost.brake.stopped("r1", 5, 2)
        one.finish("r1")
        assert one.verdict("r1").state is VerdictState.ALERT
        assert one.outpost.close(30.0)
        counted = worker.end()
    assert counted["actions.stop_generation.blocked"] == 1
    assert [one["data"]["unmapped"]["nae.stop"] for one in alerts(tmp_path)] == ["blocked"]


def test_a_rule_raises_the_sampling_of_the_serving_process(tmp_path: Path) -> None:
    actions = ActionSettings(raise_sampling=True, raised_decodes_per_s=1e6)
    settings = configuration(tmp_path, actions=actions)
    settings = replace(settings, screen=replace(settings.screen, every_n_tokens=100))
    rules = Path(settings.detect.rules[0])
    raising = "actions: [{raise_sampling: {rate: 1.0, tokens: 50, scope: request}}]"
    text = rules.read_text(encoding="utf-8").replace(
        "actions: [{stop_generation: {mode: enforce, within_tokens: 2}}]", raising
    )
    rules.write_text(text, encoding="utf-8")
    with worker_process(settings), server(settings) as one:
        one.start("r1")
        one.rows("r1", (0,), coordinate=0)
        position = 0

        def is_raised() -> bool:
            nonlocal position
            position += 1
            one.rows("r1", (position,))
            return one.health.ledger("r1").get("tokens.sampled", 0) > 1

        wait_until(is_raised)
        one.finish("r1")
        assert one.verdict("r1").coverage.judged_tokens > 1


def test_several_serving_processes_share_a_worker(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one, server(settings) as other:
        for number in range(3):
            assert one.one(f"a{number}").state is VerdictState.CLEAN
            assert other.one(f"b{number}", coordinate=0).state is VerdictState.ALERT
        assert one.outpost.close(30.0)
        assert other.outpost.close(30.0)
        assert worker.end()["tokens.judged"] == 18


def test_an_id_may_be_used_again_by_another_serving_process(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings), server(settings) as one, server(settings) as other:
        assert one.one("r1", coordinate=0).state is VerdictState.ALERT
        verdict = other.one("r1")
        assert verdict.state is VerdictState.CLEAN, verdict
        assert verdict.coverage.judged_tokens == 3


def test_an_id_in_use_by_two_serving_processes_at_once_is_never_clean(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings), server(settings) as one, server(settings) as other:
        one.start("r1")
        one.rows("r1", (0, 1))
        one.start("r2")
        one.rows("r2", (0,))
        one.finish("r2")
        assert one.verdict("r2").state is VerdictState.CLEAN  # the worker knows of r1 by now
        verdict = other.one("r1")
        one.finish("r1")
        assert verdict.state is VerdictState.UNDECIDED
        assert any("in use in another serving process" in reason for reason in verdict.reasons)
        assert one.verdict("r1").state is VerdictState.CLEAN


def test_sessions_keep_to_one_of_several_workers(tmp_path: Path) -> None:
    settings = configuration(tmp_path, workers=3)
    with (
        worker_process(settings, 0) as a,
        worker_process(settings, 1) as b,
        worker_process(settings, 2) as c,
        server(settings) as one,
    ):
        wait_until(lambda: set(one.outpost.state().values()) == {"ready"})
        for number in range(24):
            verdict = one.one(f"r{number}", session_id=f"s{number % 12}")
            assert verdict.state is VerdictState.CLEAN, verdict
        assert one.outpost.close(30.0)
        counted = [worker.end() for worker in (a, b, c)]
    judged = [counts.get("tokens.judged", 0) for counts in counted]
    assert sum(judged) == 72
    assert all(amount and amount % 6 == 0 for amount in judged)  # both requests of each session


def test_a_batch_is_folded_into_one_verdict(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings), server(settings) as one:
        for number, coordinate in enumerate((3, 0)):
            one.start(f"g#{number}", group_id="g")
            one.rows(f"g#{number}", (0, 1), coordinate)
        for number in (0, 1):
            one.finish(f"g#{number}")
        verdict = one.verdict("g")
        assert verdict.state is VerdictState.ALERT
        assert verdict.coverage.judged_tokens == 4


def test_what_the_serving_process_could_not_keep_is_in_the_verdict(tmp_path: Path) -> None:
    settings = configuration(tmp_path, policy=PolicySettings(min_judged_tokens=0))
    settings = replace(settings, capture=replace(settings.capture, queue_bytes=1))
    with worker_process(settings), server(settings) as one:
        verdict = one.one("r1")
        assert verdict.state is VerdictState.UNDECIDED
        assert verdict.coverage.dropped_tokens == {"queue_full": 3}


def test_a_prompt_longer_than_the_context_of_any_model_fits_a_frame(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings), server(settings) as one:
        one.start("r1", prompt_tokens=250_000)
        one.rows("r1", (0,), phase=Phase.PROMPT)
        one.finish("r1")
        assert one.verdict("r1").state is VerdictState.CLEAN


def test_a_forked_serving_process_is_one_of_its_own(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one:
        assert one.one("parent-1").state is VerdictState.CLEAN
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                state = one.one("child").state
                os._exit(0 if state is VerdictState.CLEAN and one.outpost.close(30.0) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert one.one("parent-2").state is VerdictState.CLEAN
        assert one.outpost.close(30.0)
        assert worker.end()["tokens.judged"] == 9
