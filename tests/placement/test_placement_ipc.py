"""Serving processes and workers over ZeroMQ: what is judged, what is lost, and who says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from placement_parts import (
    alerts,
    configuration,
    server,
    serving_anyway,
    titles,
    wait_until,
    worker_process,
)

from nae_monitor.errors import ConfigurationError
from nae_monitor.records import VerdictState
from nae_monitor.settings import ActionSettings


def test_a_request_without_hits_is_clean_by_the_counts_of_both_processes(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one:
        verdict = one.one("r1")
        assert verdict.state is VerdictState.CLEAN, verdict
        coverage = verdict.coverage
        assert (coverage.seen_tokens, coverage.screened_tokens, coverage.judged_tokens) == (3, 3, 3)
        assert one.outpost.close(30.0)
        assert worker.end()["tokens.judged"] == 3


def test_findings_of_the_worker_come_back_and_its_alert_goes_out(tmp_path: Path) -> None:
    settings = configuration(tmp_path)
    with worker_process(settings) as worker, server(settings) as one:
        verdict = one.one("r1", coordinate=0)
        assert verdict.state is VerdictState.ALERT
        assert [f.rule_name for f in verdict.findings] == ["first_coordinate"] * 3
        worker.end()
    assert titles(tmp_path)[0] == "The first coordinate is the largest"
    assert alerts(tmp_path)[0]["data"]["unmapped"]["nae.stop"] == "would_block"
