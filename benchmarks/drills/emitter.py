"""A process that emits alerts at a steady rate and says what was accepted and what emitting cost.

It prints one JSON object a line: ``{"accepted", "delivered", "stats", "cost_us"}``, where accepted
and delivered count this process's own alerts and cost_us the calls since the line before.
Told ``limit BYTES`` on standard input it may write no file beyond that size (a full disk).
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from drills.alerts import alert, policy
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.otlp import OtlpSink
from nae_monitor.alert.sink import Sink
from nae_monitor.health import Health
from nae_monitor.sink_settings import KafkaSettings, OtelSettings

TELL_S = 0.1
CLOSE_S = 2.0


def main(options: Mapping[str, Any]) -> None:
    sink = build(options)
    state = {"stop": False}
    threading.Thread(target=_obey, args=(state,), daemon=True).start()
    numbers = iter(range(options["first"], options["first"] + options["count"]))
    recovered = sink.stats().get("recovered", 0)
    costs: list[float] = []
    start_s, sent, tell_at_s = time.perf_counter(), 0, 0.0
    number = next(numbers, None)
    while not state["stop"]:
        now_s = time.perf_counter()
        if number is not None and sent < (now_s - start_s) * options["rate"]:
            costs.append(_emit(sink, number))
            sent, number = sent + 1, next(numbers, None)
        else:
            time.sleep(0.0005)
        if now_s >= tell_at_s:
            _tell(sink, recovered, costs)
            costs, tell_at_s = [], now_s + TELL_S
    sink.close(CLOSE_S)
    _tell(sink, recovered, costs)


def _emit(sink: Sink, number: int) -> float:
    """Microseconds that the caller paid."""
    one = alert(number)
    before = time.perf_counter_ns()
    sink.emit(one)
    return (time.perf_counter_ns() - before) / 1000


def build(options: Mapping[str, Any]) -> Sink:
    if options["kind"] == "otel":
        settings = OtelSettings(options["endpoint"], outbox=options["outbox"])
        return OtlpSink(settings, policy(), Health())
    kafka = KafkaSettings(options["bootstrap"], outbox=options["outbox"])
    timeout_s = options.get("delivery_timeout_s", 10.0)
    return KafkaSink(kafka, policy(), Health(), delivery_timeout_s=timeout_s)


def _tell(sink: Sink, recovered: int, costs: list[float]) -> None:
    stats = dict(sink.stats())
    line = {
        "accepted": stats["accepted"] - recovered,
        "delivered": stats["delivered"],
        "stats": stats,
        "cost_us": [round(cost, 1) for cost in costs],
    }
    print(json.dumps(line), flush=True)


def _obey(state: dict[str, bool]) -> None:
    for line in sys.stdin:
        match line.split():
            case ["stop"]:
                state["stop"] = True
            case ["limit", size]:
                most = resource.RLIM_INFINITY if size == "none" else int(size)
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main(json.loads(sys.argv[1]))
