"""Verdicts written down as they are made: an interrupted backtest goes on where it stopped.

The first line names what the verdicts depend on, each further one is a judged sample: its id, a
digest of all that rules see of it, the rules that matched with their severities, those that could
not decide, and what fidelity gates did. No text of the corpus is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, get_args

from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.detect.tools.verdict import Gated, Verdict
from nae_monitor.errors import InputDataError
from nae_monitor.records import Severity

JOURNAL_VERSION = 2
MAX_LINE_BYTES = 1024 * 1024
FLUSHED_EVERY = 50  # samples


class Journal:
    """The verdicts of one backtest. Not for two processes at a time.

    Args:
        path: made where it is missing.
        depends_on: what other verdicts would follow from, such as the rules' fingerprint.

    Raises:
        InputDataError: it is no journal, or of other rules, or cannot be written.
    """

    def __init__(self, path: Path, depends_on: Mapping[str, str]) -> None:
        self.path = path
        self.recalled = 0  # samples whose verdict was read
        self._line = 1
        self._unflushed = 0
        self._reading = True
        header = {"journal_version": JOURNAL_VERSION, **depends_on}
        try:
            path.touch()
            self._file: BinaryIO = path.open("r+b")
        except OSError as error:
            raise InputDataError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            self._check(header)
        except InputDataError:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def recall(self, sample: Sample) -> Verdict | None:
        """The verdict on this sample; None where the journal ends before it.

        Raises:
            InputDataError: the next verdict is of another sample.
        """
        value = self._next() if self._reading else None
        if value is None:
            self._reading = False
            return None
        if value[:2] != [sample.id, digest_of(sample)]:
            message = "the corpus is not the one it was written over"
            raise InputDataError(f"{self.path}:{self._line}: {message}; remove the journal")
        self.recalled += 1
        matched = {name: Severity(severity) for name, severity in value[2].items()}
        return Verdict(matched, frozenset(value[3]), value[4])

    def note(self, sample: Sample, verdict: Verdict) -> None:
        """Write the verdict on the sample behind the last one."""
        matched, gated = dict(verdict.matched), dict(verdict.gated)
        self._write([sample.id, digest_of(sample), matched, sorted(verdict.undecided), gated])
        self._unflushed += 1
        if self._unflushed >= FLUSHED_EVERY:
            self._file.flush()
            self._unflushed = 0

    def _check(self, header: Mapping[str, Any]) -> None:
        value = self._value()
        if value is None:
            self._write(header)
            self._reading = False
        elif not isinstance(value, dict) or value.get("journal_version") != JOURNAL_VERSION:
            raise InputDataError(f"{self.path}: is not a journal of version {JOURNAL_VERSION}")
        elif other := sorted(key for key in header if value.get(key) != header[key]):
            message = f"was written under other {' and '.join(other)}"
            raise InputDataError(f"{self.path}: {message}; remove it, or name another file")

    def _next(self) -> list[Any] | None:
        value = self._value()
        if value is None:
            return None
        self._line += 1
        if not _is_verdict(value):
            raise InputDataError(f"{self.path}:{self._line}: is damaged; remove the journal")
        return list(value)

    def _value(self) -> Any:
        """The next whole line's value; None at the end, where a line cut short is taken off."""
        start = self._file.tell()
        line = self._file.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            if len(line) >= MAX_LINE_BYTES:
                raise InputDataError(f"{self.path}: is not a journal")
            self._file.seek(start)
            self._file.truncate()
            return None
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputDataError(f"{self.path}: is not a journal") from error

    def _write(self, value: Any) -> None:
        try:
            self._file.write(json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n")
        except OSError as error:
            raise InputDataError(f"{self.path}: cannot be written: {error.strerror}") from error


def _is_verdict(value: Any) -> bool:
    """Whether a line is the verdict on a sample."""
    if not isinstance(value, list) or len(value) != 5:
        return False
    matched, undecided, gated = value[2:]
    return (
        _maps_to(matched, [severity.value for severity in Severity])
        and isinstance(undecided, list)
        and all(type(name) is str for name in undecided)
        and _maps_to(gated, get_args(Gated))
    )


def _maps_to(value: Any, allowed: Collection[str]) -> bool:
    return isinstance(value, dict) and all(
        type(item) is str and item in allowed for item in value.values()
    )


def digest_of(sample: Sample) -> str:
    """A short hash of all that rules see of a sample."""
    activation, decoding, transcript = sample.activation, sample.decoding, sample.transcript
    request = activation.request
    seen = (
        (request.request_id, request.started_unix_ns, request.group_id, request.model),
        (request.session_id, request.tenant, sorted(request.attributes.items())),
        (activation.position, activation.token, activation.phase.value, activation.layer),
        (activation.captured_unix_ns, sorted(activation.scores.items())),
        (decoding.text, decoding.fve, decoding.cosine, decoding.support, decoding.nla_id),
        (transcript.prompt, transcript.output),
    )
    digest = hashlib.blake2b(json.dumps(seen).encode("ascii"), digest_size=8)
    digest.update(activation.vector.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
