"""Read alerts back: from a file of the jsonl sink, or from a Kafka topic.

Both are untrusted input: what is no alert event is skipped and counted, never raised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nae_monitor.alert.consume import KafkaTail, consume_kafka
from nae_monitor.alert.read_alert import ReadAlert, from_json
from nae_monitor.errors import InputDataError

__all__ = ["JsonlTail", "KafkaTail", "ReadAlert", "consume_kafka"]

MAX_LINE_BYTES = 4 * 1024 * 1024
POLL_S = 0.2


class JsonlTail:
    """Iterates over the alerts of one file, oldest first.

    ``skipped`` counts the lines that are no alert events: a last line torn by a crash, or the
    end of one that a restart closed. With ``follow`` it never ends by itself: it waits for
    further lines, and goes over to the new file when the sink rotates.
    """

    def __init__(self, path: Path | str, *, follow: bool = False) -> None:
        self._path = Path(path)
        self._follow = follow
        self.skipped = 0

    def __iter__(self) -> Iterator[ReadAlert]:
        """Read the file from its start.

        Raises:
            InputDataError: the file cannot be read.
        """
        try:
            while True:
                with self._path.open("rb") as file:
                    yield from self._read(file)
                if not self._follow:
                    return
        except OSError as error:
            raise InputDataError(f"{self._path}: cannot be read: {error.strerror}") from error

    def _read(self, file: BinaryIO) -> Iterator[ReadAlert]:
        while True:
            ended = not self._follow or self._was_replaced(file)  # asked before the last read
            start = file.tell()
            line = file.readline(MAX_LINE_BYTES)
            if not ended and len(line) < MAX_LINE_BYTES and not line.endswith(b"\n"):
                file.seek(start)  # nothing yet, or a line half-written
                time.sleep(POLL_S)
                continue
            if not line:
                return
            alert = from_json(line)
            if alert is not None:
                yield alert
            elif line.strip():
                self.skipped += 1

    def _was_replaced(self, file: BinaryIO) -> bool:
        """Whether the path is another file by now, or this one was cut."""
        try:
            there = self._path.stat()
        except FileNotFoundError:  # between the two renames of a rotation
            return False
        return there.st_ino != os.fstat(file.fileno()).st_ino or there.st_size < file.tell()
