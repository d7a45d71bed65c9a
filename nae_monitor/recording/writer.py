"""The writing end of a recording."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nae_monitor.errors import ConfigurationError, Mark, Problem, VectorError
from nae_monitor.recording.encryption import PLAIN, Cipher, writing_cipher
from nae_monitor.recording.findings import canonical_line, finding_to_json, withheld
from nae_monitor.recording.privacy import Content, ContentFilter
from nae_monitor.recording.rotation import Limits, RotatingTable
from nae_monitor.recording.rows import RequestRecord
from nae_monitor.recording.schema import (
    VECTOR,
    activation_row,
    activations_schema,
    activations_table,
    request_row,
    requests_table,
)
from nae_monitor.recording.sealing import (
    FINDINGS,
    MANIFEST,
    OPEN_SUFFIX,
    SEALS,
    STOPS,
    CountedAppender,
    LineAppender,
    Totals,
    seal_line,
    sync_directory,
    write_whole,
)
from nae_monitor.recording.stops import stop_to_json
from nae_monitor.records import Activation, Decoding, Finding, Stop

FORMAT = "nae_monitor.recording"
FORMAT_VERSION = 3  # 1 had no stops, 2 did not count those that were lost
TORCH_TYPES = {"float16": torch.float16, "float32": torch.float32}


class RecordingWriter:
    """Writes one recording directory. Thread-safe; not for the serving thread (it waits on disk).

    Rows gather in memory and become a whole Parquet file every ``rotate_rows`` rows,
    ``rotate_bytes`` bytes or ``rotate_s`` seconds, checked at each write and by :meth:`tick`.
    A crash loses at most what gathered since; findings are appended at once.

    A write raises OSError where the disk is full or gone: that row was not taken, rows taken
    before are kept and tried again at the next write, and finished files stay readable.

    Args:
        directory: made if missing; must not hold a recording yet.
        manifest: JSON-able facts of the run, without content. Readers know ``model``, ``layer``
            (K), ``nla_id``, ``nla_weights`` (precision of the verbalizer that made its decodes),
            ``rules_sha256``, ``special_token_ids``, ``replayed_from`` and ``keep`` (which rows were
            meant to be kept; see :class:`nae_monitor.settings.RecordSettings`).
        d_model: width of every vector.
        vector_dtype: "float16" or "float32"; vectors are converted to it.
        content: what of prompts, outputs and decoded text is kept.
        hmac_key: needed for content "hash".
        created_unix_ns: None: now.
        encrypted: under the first key of the environment; see
            :mod:`nae_monitor.recording.encryption`.
        judged_is_filtered: decodings and findings come as the content setting lets them through.
        clock: seconds, monotonic.

    Raises:
        ConfigurationError: a directory that cannot be written or already holds a recording,
            an unknown dtype, a missing key, no package to encrypt with.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        manifest: Mapping[str, Any],
        d_model: int,
        vector_dtype: str = "float16",
        content: Content = "hash",
        hmac_key: bytes | None = None,
        rotate_rows: int = 2048,
        rotate_bytes: int = 16 * 1024 * 1024,
        rotate_s: float = 30.0,
        created_unix_ns: int | None = None,
        encrypted: bool = False,
        judged_is_filtered: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = Path(directory)
        self._content = ContentFilter(content, hmac_key)
        self._judged_content = ContentFilter("full", None) if judged_is_filtered else self._content
        self._d_model = d_model
        self._dtype = _torch_dtype(vector_dtype, self.directory)
        self._lock = threading.Lock()
        self._closed = False
        created_unix_ns = time.time_ns() if created_unix_ns is None else created_unix_ns
        self._cipher: Cipher = writing_cipher(created_unix_ns) if encrypted else PLAIN
        known: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "d_model": d_model,
            "vector_dtype": vector_dtype,
            "content": content,
            "hmac_key_id": self._content.key_id,
            "created_unix_ns": created_unix_ns,
        }
        if self._cipher.described is not None:
            known["encryption"] = self._cipher.described
        self._start({**manifest, **known})
        # pyarrow imports pandas, where it is installed, with the first array it is given: not when
        # the last rows are written, since a process that was interrupted may be ending then.
        pa.array(np.zeros(0))
        limits = Limits(rotate_rows, rotate_bytes, rotate_s)
        schema = activations_schema(d_model, vector_dtype)
        self._activations = RotatingTable(
            self.directory,
            "activations",
            lambda rows: activations_table(rows, schema),
            self._seals,
            limits,
            clock,
            self._cipher,
        )
        self._requests = RotatingTable(
            self.directory, "requests", requests_table, self._seals, limits, clock, self._cipher
        )

    def _start(self, manifest: Mapping[str, Any]) -> None:
        target = self.directory / MANIFEST
        if ":/" in str(self.directory):
            mend = "write it to a directory, and copy it once it is closed"
            raise _refused(self.directory, "is not on this machine", mend)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if target.exists():
                message = "already holds a recording"
                raise _refused(self.directory, message, "give each run a directory of its own")
            part = self.directory / f"{MANIFEST}{OPEN_SUFFIX}"
            write_whole(part, (canonical_line(manifest) + "\n").encode("ascii"))
            self._findings = CountedAppender(self.directory / FINDINGS, self._cipher)
            self._stops = CountedAppender(self.directory / STOPS, self._cipher)
            self._seals = LineAppender(self.directory / SEALS)
            with suppress(OSError):  # of a file system that knows no locks
                self._seals.lock()
            part.rename(target)
            sync_directory(self.directory)
        except OSError as error:
            message = f"cannot be written: {error.strerror}"
            mend = "choose a directory this user may write, with free space"
            raise _refused(self.directory, message, mend) from error

    def write_activation(
        self, activation: Activation, decoding: Decoding | None, dropped_reason: str | None = None
    ) -> None:
        """Take one chosen row, with its live decoding or the reason it has none.

        Raises:
            VectorError: the vector is not [d_model].
            OSError: the disk refuses; the row was not taken.
        """
        if tuple(activation.vector.shape) != (self._d_model,):
            raise VectorError(
                f"a vector of shape {list(activation.vector.shape)}, not [{self._d_model}]"
            )
        row = activation_row(
            activation, decoding, dropped_reason, self._content, self._judged_content
        )
        # A copy, so that the caller may reuse its buffer.
        vector = activation.vector.detach().to("cpu", self._dtype, copy=True).numpy()
        text_bytes = len(row.get("explanation") or "") + 256
        with self._lock:
            self._activations.add({**row, VECTOR: vector}, vector.nbytes + text_bytes)

    def write_request(self, record: RequestRecord) -> None:
        """Take one finished request. Raises OSError: it was not taken."""
        row = request_row(record, self._content)
        tokens = record.prompt_tokens + record.output_tokens
        with self._lock:
            self._requests.add(row, 256 + 32 * tokens)

    def write_findings(self, findings: Iterable[Finding]) -> None:
        """Append findings. Raises OSError: none of them was taken."""
        content = self._judged_content
        lines = [canonical_line(finding_to_json(withheld(f, content))) for f in findings]
        if lines:
            with self._lock:
                self._findings.append(lines)

    def write_stops(self, stops: Iterable[Stop]) -> None:
        """Append stops as they are known now. Raises OSError: none of them was taken."""
        lines = [canonical_line(stop_to_json(stop)) for stop in stops]
        if lines:
            with self._lock:
                self._stops.append(lines)

    def tick(self) -> None:
        """Finish files that are due by age. For the loop of an idle owner. Raises OSError."""
        with self._lock:
            self._activations.rotate_if_due()
            self._requests.rotate_if_due()

    def flush(self) -> None:
        """Finish the files of everything taken so far. Raises OSError."""
        with self._lock:
            self._activations.rotate()
            self._requests.rotate()

    def close(self, *, stops_lost: int | None = 0) -> None:
        """Finish every file and write the totals. Idempotent; raises OSError and may be retried.

        Args:
            stops_lost: stops that :meth:`write_stops` never took; None where nobody knows.
        """
        with self._lock:
            if self._closed:
                return
            self._activations.rotate()
            self._requests.rotate()
            totals = Totals(
                activations=self._activations.sealed_rows,
                requests=self._requests.sealed_rows,
                findings=self._findings.count,
                findings_sha256=self._findings.sha256,
                stops=self._stops.count,
                stops_sha256=self._stops.sha256,
                stops_lost=stops_lost,
            )
            self._findings.sync()
            self._stops.sync()
            self._seals.append([seal_line(totals)], sync=True)
            self._closed = True
            self._close_lines()

    def _close_lines(self) -> None:
        for lines in (self._findings, self._stops, self._seals):
            lines.close()

    def abandon(self) -> None:
        """Finish every file but write no totals: readers see a recording that was broken off."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._activations.rotate()
                self._requests.rotate()
            finally:
                self._close_lines()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _torch_dtype(name: str, directory: Path) -> torch.dtype:
    if name not in TORCH_TYPES:
        raise _refused(directory, f"vector_dtype is {name!r}", "one of: float16, float32")
    return TORCH_TYPES[name]


def _refused(directory: Path, message: str, mend: str) -> ConfigurationError:
    return ConfigurationError([Problem(Mark(str(directory)), message, mend)])
