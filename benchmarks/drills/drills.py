"""The drills: each ends with what was accepted, what stood on the topic, and what emitting cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drills.cluster import Cluster, free_port, wait_until
from drills.run import Emitter, Found

Report = Callable[[str, int, int], None]
RESTART_PAUSE_S = 1.0  # between a broker's death and its return
LIMIT_S = 300.0
AWAY_RATE_PER_S = 40.0
UP, KILLS, AWAY = "everything up", "brokers killed and hung", "broker away"
COLLECTOR, DISK, DAMAGED = "collector away", "disk full", "outbox damaged"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of each."""

    alerts: int  # of the drill with kills
    rate_per_s: float
    broker_kills: int
    emitter_kills: int
    hang_s: float
    away_s: float
    delivery_timeout_s: float
    steady_s: float  # of the other states


@dataclass(slots=True)
class Outcome:
    """Counts of one drill; ``cost_us`` is what each call of ``emit`` took, in this state."""

    state: str
    accepted: int = 0
    missing: int = 0
    repeats: int = 0
    reorderings: int = 0
    told_lost: int = 0  # accepted, and counted as dropped
    return_s: float | None = None  # from the broker's return to the last of what waited for it
    note: str = ""
    cost_us: list[float] = field(default_factory=list)


def drills(scale: Scale, directory: Path, report: Report) -> Iterator[Outcome]:
    """Each in turn, in ``directory``."""
    yield kills(scale, directory / "kills.sqlite", report)
    yield from away(scale, directory / "away.sqlite", report)
    yield collector_away(scale, directory / "collector.sqlite", report)
    yield disk_full(scale, directory / "disk.sqlite", report)
    yield damaged(scale, directory / "damaged.sqlite", report)


def kills(scale: Scale, outbox: Path, report: Report) -> Outcome:
    """Brokers and emitters are killed, and a broker hangs, while alerts go on."""
    steps = ["broker"] * scale.broker_kills + ["hang"]
    for number in range(scale.emitter_kills):
        steps.insert(2 * number + 1, "emitter")
    outcome = Outcome(KILLS, note=f"{len(steps)} faults")
    cluster = Cluster(durable=True)

    def emitter(first: int) -> Emitter:
        return Emitter(
            bootstrap=cluster.bootstrap,
            outbox=str(outbox),
            first=first,
            count=scale.alerts - first,
            rate=scale.rate_per_s,
            delivery_timeout_s=scale.delivery_timeout_s,
        )

    running = emitter(0)
    try:
        for number, step in enumerate(steps, 1):
            due = scale.alerts * number // (len(steps) + 1)
            wait_until(lambda r=running, d=due: r.first + r.accepted >= d, LIMIT_S)
            if step == "emitter":
                first = running.first + running.kill()
                outcome.cost_us += running.cost_us
                running = emitter(first)
            elif step == "broker":
                cluster.kill()
                time.sleep(RESTART_PAUSE_S)
                cluster.start()
            else:
                cluster.hang(scale.hang_s)
            report(KILLS, number, len(steps) + 1)
        whole = scale.alerts - running.first
        wait_until(lambda: running.accepted == whole, LIMIT_S)
        _finish(running, cluster, outcome, range(scale.alerts))
        report(KILLS, len(steps) + 1, len(steps) + 1)
    finally:
        running.kill()
        cluster.close()
    return outcome


def away(scale: Scale, outbox: Path, report: Report) -> Iterator[Outcome]:
    """The broker dies with batches in flight and stays away for longer than any of them lives."""
    up, gone = Outcome(UP), Outcome(AWAY, note=f"{scale.away_s:.0f} s")
    cluster = Cluster(durable=True)
    count = int(AWAY_RATE_PER_S * (scale.steady_s + scale.away_s))
    emitter = Emitter(
        bootstrap=cluster.bootstrap,
        outbox=str(outbox),
        count=count,
        rate=AWAY_RATE_PER_S,
        delivery_timeout_s=scale.delivery_timeout_s,
    )
    try:
        emitter.wait_for(1, LIMIT_S)
        time.sleep(scale.steady_s)
        up.accepted, up.cost_us = emitter.accepted, list(emitter.cost_us)
        cluster.kill()
        report(AWAY, 1, 3)
        time.sleep(scale.away_s)
        cluster.start()
        waiting, back_s = emitter.accepted, time.monotonic()
        emitter.wait_for(waiting, LIMIT_S)
        gone.return_s = time.monotonic() - back_s
        report(AWAY, 2, 3)
        wait_until(lambda: emitter.accepted == count, LIMIT_S)
        _finish(emitter, cluster, gone, range(count))
        gone.cost_us = gone.cost_us[len(up.cost_us) :]
        report(AWAY, 3, 3)
    finally:
        emitter.kill()
        cluster.close()
    yield up
    yield gone


def _finish(emitter: Emitter, cluster: Cluster, outcome: Outcome, numbers: range) -> None:
    """Wait until nothing is pending, then compare the topic with what was accepted."""
    wait_until(lambda: emitter.stat("pending") == 0, LIMIT_S)
    emitter.stop()
    outcome.cost_us += emitter.cost_us
    found = Found(cluster.bootstrap, len(numbers))
    outcome.accepted = len(numbers)
    outcome.missing = len(set(numbers) - found.numbers)
    outcome.repeats, outcome.reorderings = found.repeats, found.reorderings


def collector_away(scale: Scale, outbox: Path, report: Report) -> Outcome:
    """Nobody listens where spans go: alerts wait in the outbox, and what is dropped is counted."""
    emitter = Emitter(
        kind="otel",
        endpoint=f"http://127.0.0.1:{free_port()}",
        outbox=str(outbox),
        count=10**9,
        rate=scale.rate_per_s,
    )
    try:
        wait_until(lambda: emitter.accepted > 0)
        time.sleep(scale.steady_s)
        emitter.stop()
        outcome = Outcome(COLLECTOR, cost_us=emitter.cost_us)
        emitted = len(emitter.cost_us)
        outcome.accepted = emitter.accepted
        outcome.note = f"{emitter.stat('pending')} kept, of {emitted} emitted"
        outcome.missing = emitted - emitter.accepted - emitter.stat("dropped.queue_full")
    finally:
        emitter.kill()
    report(COLLECTOR, 1, 1)
    return outcome


def disk_full(scale: Scale, outbox: Path, report: Report) -> Outcome:
    """The emitter may write no file for a while: the system answers as on a full disk."""
    outcome, cluster = Outcome(DISK), Cluster(durable=False)
    emitter = _steady(cluster, outbox, scale)
    try:
        emitter.wait_for(1, LIMIT_S)
        emitter.tell("limit", 1)
        before = len(emitter.cost_us)
        wait_until(lambda: emitter.stat("retried.OperationalError") > 0)
        time.sleep(scale.steady_s)
        outcome.note = f"{emitter.stat('retried.OperationalError')} commits refused"
        costs = emitter.cost_us[before:]
        emitter.tell("limit", "none")
        count = int(scale.rate_per_s * scale.steady_s * 3)
        wait_until(lambda: emitter.accepted == count, LIMIT_S)
        _finish(emitter, cluster, outcome, range(count))
        outcome.cost_us = costs
    finally:
        emitter.kill()
        cluster.close()
    report(DISK, 1, 1)
    return outcome


def damaged(scale: Scale, outbox: Path, report: Report) -> Outcome:
    """The file is overwritten under the sink while the broker is away."""
    outcome, cluster = Outcome(DAMAGED), Cluster(durable=False)
    emitter = _steady(cluster, outbox, scale)
    try:
        emitter.wait_for(1, LIMIT_S)
        cluster.kill()
        time.sleep(scale.steady_s / 2)
        outbox.write_bytes(b"\xa5" * max(65536, outbox.stat().st_size))
        Path(f"{outbox}-wal").write_bytes(b"\xa5" * 65536)
        before = len(emitter.cost_us)
        wait_until(lambda: emitter.stat("outbox_damaged") > 0, LIMIT_S)
        cluster.start()
        count = int(scale.rate_per_s * scale.steady_s * 3)
        wait_until(lambda: emitter.accepted == count, LIMIT_S)
        wait_until(lambda: emitter.stat("pending") == 0, LIMIT_S)
        emitter.stop()
        outcome.cost_us = emitter.cost_us[before:]
        outcome.accepted = emitter.accepted
        outcome.told_lost = emitter.stat("dropped.outbox_damaged")
        outcome.missing = emitter.accepted - emitter.last["delivered"] - outcome.told_lost
        aside = len(list(outbox.parent.glob(f"{outbox.name}.corrupt-*Z")))
        outcome.note = f"{aside} file moved aside"
    finally:
        emitter.kill()
        cluster.close()
    report(DAMAGED, 1, 1)
    return outcome


def _steady(cluster: Cluster, outbox: Path, scale: Scale) -> Emitter:
    return Emitter(
        bootstrap=cluster.bootstrap,
        outbox=str(outbox),
        count=int(scale.rate_per_s * scale.steady_s * 3),
        rate=scale.rate_per_s,
        delivery_timeout_s=scale.delivery_timeout_s,
    )
