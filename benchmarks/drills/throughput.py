"""How many alerts a second a sink delivers on one core, and the client alone beside it.

Run as a program it measures one of the two in a process of its own: ``KIND BOOTSTRAP COUNT``.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drills.alerts import alert, policy
from drills.cluster import Cluster
from nae_monitor.alert.event import to_event
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_producer import connect
from nae_monitor.health import Health
from nae_monitor.sink_settings import KafkaSettings

BENCHMARKS = Path(__file__).parents[1]
AHEAD = 4000  # alerts that the emitting thread is ahead of the sink
WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Rates:
    """Events/s, one for each round."""

    sink: list[float]
    client: list[float]


def measure_rates(rounds: int, count: int, report: Callable[[str, int, int], None]) -> Rates:
    """Both in turn, each in a process that may use one core; the broker has the others."""
    rates = Rates([], [])
    cluster = Cluster(durable=False)
    try:
        for number in range(rounds):
            rates.sink.append(_in_process("sink", cluster.bootstrap, count))
            rates.client.append(_in_process("client", cluster.bootstrap, count))
            report("throughput", number + 1, rounds)
    finally:
        cluster.close()
    return rates


def _in_process(kind: str, bootstrap: str, count: int) -> float:
    path = os.pathsep.join([str(BENCHMARKS), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "drills.throughput", kind, bootstrap, str(count)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(json.loads(done.stdout))


def sink_rate(bootstrap: str, count: int) -> float:
    """From the first emit to the last acknowledgement."""
    with tempfile.TemporaryDirectory() as directory:
        settings = KafkaSettings(bootstrap, outbox=f"{directory}/o.sqlite")
        sink = KafkaSink(settings, policy(), Health())
        alerts = [alert(number) for number in range(count + WARM_UP)]
        for one in alerts[:WARM_UP]:
            sink.emit(one)
        _wait_for(sink, WARM_UP)
        start_s = time.perf_counter()
        for number, one in enumerate(alerts[WARM_UP:]):
            sink.emit(one)
            if number % 100 == 0:
                _wait_for(sink, number + WARM_UP - AHEAD)
        _wait_for(sink, count + WARM_UP)
        rate = count / (time.perf_counter() - start_s)
        sink.close(10.0)
        return rate


def _wait_for(sink: KafkaSink, delivered: int) -> None:
    while sink.stats()["delivered"] < delivered:
        time.sleep(0.002)


def client_rate(bootstrap: str, count: int) -> float:
    """The same bytes under the same settings, made beforehand; nothing is kept on disk."""
    settings = KafkaSettings(bootstrap, "nae.client")
    rules = policy()
    events = [to_event(rules.redact(alert(n)), rules) for n in range(count + WARM_UP)]
    records = [(event.key, event.headers(), event.value()) for event in events]
    producer = connect(settings, ["nae.client"], 60.0)
    producer.config["max_block_ms"] = 20_000

    def send(some: list[tuple[bytes, list[tuple[str, bytes]], bytes]]) -> None:
        futures = [
            producer.send("nae.client", key=key, headers=headers, value=value)
            for key, headers, value in some
        ]
        for future in futures:
            future.get(60)

    send(records[:WARM_UP])
    start_s = time.perf_counter()
    send(records[WARM_UP:])
    rate = count / (time.perf_counter() - start_s)
    producer.close(timeout=5)
    return rate


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    measured = sink_rate if sys.argv[1] == "sink" else client_rate
    print(json.dumps(measured(sys.argv[2], int(sys.argv[3]))))
