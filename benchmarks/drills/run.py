"""Emitters under the eyes of a drill: what they had accepted, what each call cost its caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer

from drills.cluster import wait_until
from nae_monitor.alert.kafka_producer import API_VERSION

BENCHMARKS = Path(__file__).parents[1]
TOPIC = "nae.alerts"
QUIET_S = 60.0  # a busy store takes its time
FETCH_BYTES = 64 * 1024


class Emitter:
    """One emitting process; its lines are read as they come."""

    def __init__(self, **options: Any) -> None:
        self.first = options.setdefault("first", 0)
        self.cost_us: list[float] = []
        self.last: dict[str, Any] = {"accepted": 0, "delivered": 0, "stats": {}}
        path = os.pathsep.join([str(BENCHMARKS), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "drills.emitter", json.dumps({"kind": "kafka", **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):  # cut by a kill
                return
            self.last = json.loads(line)
            self.cost_us += self.last["cost_us"]

    @property
    def accepted(self) -> int:
        return int(self.last["accepted"])

    def stat(self, name: str) -> int:
        return int(self.last["stats"].get(name, 0))

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def kill(self) -> int:
        """``kill -9``; returns how many it was known to have accepted."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        return self.accepted

    def stop(self) -> None:
        """Let it close its sink and end."""
        self.tell("stop")
        self._process.wait(60)
        self._reader.join()

    def wait_for(self, delivered: int, limit_s: float) -> None:
        wait_until(lambda: self.last["delivered"] >= delivered, limit_s)


class Found:
    """What stands on the topic now; repeats are those that came before the last alert did.

    Read in small pieces: each record batch is an object of the store, and a fetch of many of them
    from a busy store would outlast the client's patience.
    """

    def __init__(self, bootstrap: str, expected: int) -> None:
        self.numbers: set[int] = set()
        self.repeats = self.reorderings = 0
        last: dict[bytes, int] = {}
        consumer = KafkaConsumer(
            TOPIC,
            bootstrap_servers=bootstrap,
            api_version=API_VERSION,
            group_id=None,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        quiet_at_s = time.monotonic() + QUIET_S
        while len(self.numbers) < expected and time.monotonic() < quiet_at_s:
            for record in (r for batch in consumer.poll(500).values() for r in batch):
                number = int(json.loads(record.value)["unmapped"]["nae.sequence"])
                if number in self.numbers:
                    self.repeats += 1
                else:
                    self.reorderings += number < last.get(record.key, -1)
                    last[record.key] = max(number, last.get(record.key, -1))
                self.numbers.add(number)
                quiet_at_s = time.monotonic() + QUIET_S
        consumer.close()
