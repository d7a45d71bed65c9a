"""Whether alerts arrive: brokers killed, hung and away, processes killed, disks full, files broken.

Every alert that a sink accepted (committed to its outbox) must stand on the topic afterwards, once
repeats are dropped, whatever was killed meanwhile; what a damaged outbox cost must be counted. In
every state the thread that emits pays next to nothing. The broker's records lie in an S3 server
beside it, so that they outlive it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from drills.drills import AWAY, KILLS, Outcome, Scale, drills
from drills.throughput import Rates, measure_rates
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from speed.windows import median

FULL = Scale(
    alerts=20_000,
    rate_per_s=160.0,
    broker_kills=5,
    emitter_kills=3,
    hang_s=10.0,
    away_s=150.0,
    delivery_timeout_s=10.0,
    steady_s=10.0,
)
QUICK = Scale(
    alerts=1_500,
    rate_per_s=160.0,
    broker_kills=2,
    emitter_kills=1,
    hang_s=2.0,
    away_s=6.0,
    delivery_timeout_s=2.0,
    steady_s=2.0,
)
P50_US, P99_US, RETURN_S, RATE_PER_S = 100.0, 300.0, 10.0, 5000.0
RESAMPLES = 1000
NOTES = (
    "accepted: committed to the outbox; missing: neither on the topic nor counted as dropped",
    "repeats and reorderings are those on the wire; consumers drop and order by ce_id, ce_sequence",
    "cost: of one call of emit, alerts with three evidences; the process runs a sink beside it",
    "the client alone sends the same bytes, made beforehand, and keeps nothing on disk",
)


def cost(outcome: Outcome, share: float, limit_us: float) -> Claim:
    """A percentile of what emitting cost, with its bootstrap interval."""
    samples = np.asarray(outcome.cost_us)
    random = np.random.default_rng(0)
    found = [
        float(np.quantile(random.choice(samples, len(samples)), share)) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return Claim(
        f"caller's cost p{100 * share:.0f}, {outcome.state}",
        float(np.quantile(samples, share)),
        float(low),
        float(high),
        "us",
        Bound(limit_us, at_most=True),
    )


def claims_of(outcomes: Sequence[Outcome], rates: Rates) -> list[Claim]:
    """What the issue asks for, state by state."""
    claims: list[Claim] = []
    for outcome in outcomes:
        bound = Bound(0, at_most=True)
        claims.append(
            Claim(f"missing, {outcome.state}", outcome.missing, unit="alerts", bound=bound)
        )
        if outcome.state in (KILLS, AWAY):
            claims.append(Claim(f"accepted, {outcome.state}", outcome.accepted, unit="alerts"))
        if outcome.return_s is not None:
            bound = Bound(RETURN_S, at_most=True)
            name = "delivered after the broker's return"
            claims.append(Claim(name, outcome.return_s, unit="s", bound=bound))
        claims += [cost(outcome, 0.5, P50_US), cost(outcome, 0.99, P99_US)]
    client = median("kafka-python alone, one core", np.asarray(rates.client), "alerts/s", None)
    limit = Bound(min(RATE_PER_S, client.value))
    sink = median("delivered, one core", np.asarray(rates.sink), "alerts/s", limit)
    return [*claims, sink, client]


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(title="what was accepted and what arrived")
    table.add_column("state")
    for name in ("accepted", "missing", "told lost", "repeats", "reorderings", "back in", "note"):
        table.add_column(name, justify="right")
    for one in outcomes:
        back = "" if one.return_s is None else f"{one.return_s:.1f} s"
        counts = (one.accepted, one.missing, one.told_lost, one.repeats, one.reorderings)
        table.add_row(one.state, *map(str, counts), back, one.note)
    return table


def claim_table(claims: Sequence[Claim]) -> Table:
    table = Table(title="claims")
    table.add_column("claim")
    for name in ("value", "95 % interval", "unit", "must be", "holds"):
        table.add_column(name, justify="right")
    for claim in claims:
        interval = "" if np.isnan(claim.low) else f"{claim.low:.0f} to {claim.high:.0f}"
        value = f"{claim.value:.1f}" if claim.unit in ("s", "us") else f"{claim.value:.0f}"
        table.add_row(
            claim.name,
            value,
            interval,
            claim.unit,
            str(claim.bound or ""),
            verdict(claim) if claim.bound else "",
        )
    return table


def main(quick: QuickOption = False, json_file: JsonOption = None) -> None:
    """Run every drill, then measure throughput; about seven minutes, or one with --quick."""
    with clear_errors(json_file):
        machine = describe("cpu", 0.2)
        with tempfile.TemporaryDirectory() as directory, progress() as report:
            outcomes = list(drills(QUICK if quick else FULL, Path(directory), report))
            rates = measure_rates(3 if quick else 7, 2_000 if quick else 10_000, report)
        claims = claims_of(outcomes, rates)
        context = {
            "repeats": {one.state: one.repeats for one in outcomes},
            "reorderings": {one.state: one.reorderings for one in outcomes},
            "told_lost": {one.state: one.told_lost for one in outcomes},
        }
        tables = [outcome_table(outcomes), claim_table(claims)]
        code = finish(Report(machine, claims, context), tables, NOTES, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
