"""Recordings through the decode and detect stages again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nae_monitor.detect.response import Suppression
from nae_monitor.health import Health
from nae_monitor.recording import (
    Recording,
    RecordingWriter,
    RequestRecord,
    finding_sort_key,
    open_recordings,
)
from nae_monitor.recording.encryption import PLAIN, writing_cipher
from nae_monitor.recording.privacy import Content, ContentFilter
from nae_monitor.records import Activation, Finding, VerdictState
from nae_monitor.replay.alerts import ReplayedAlerts
from nae_monitor.replay.correlation import correlated
from nae_monitor.replay.decoding import Mode, RowDecoder
from nae_monitor.replay.index import Row, RowIndex
from nae_monitor.replay.journal import Journal, Judged
from nae_monitor.replay.judging import PART_ROWS, Elsewhere, JudgedParts, RowJudge
from nae_monitor.replay.kept import NOT_RECORDED, NOT_SELECTED, KeptRows
from nae_monitor.replay.outcome import OfRequest, ReplayRun
from nae_monitor.replay.plan import (
    common_content,
    is_encrypted,
    new_recording,
    newest_unix_ns,
    refuse_mismatch,
    resume_plan,
    stops_lost,
)
from nae_monitor.replay.ports import Conclude, Correlate, Decoder, Judge, Progress
from nae_monitor.replay.selection import Selection
from nae_monitor.replay.verdicts import cautious_verdict

PIECE_BYTES = 128 * 1024 * 1024


def replay(
    paths: Iterable[Path | str],
    run_directory: Path | str,
    *,
    decoder: Decoder | None,
    judge: Judge,
    mode: Mode = "missing",
    batch_size: int = 16,
    health: Health | None = None,
    progress: Progress | None = None,
    conclude: Conclude | None = None,
    model: str | None = None,
    manifest: Mapping[str, Any] | None = None,
    content: Content | None = None,
    hmac_key: bytes | None = None,
    piece_bytes: int = PIECE_BYTES,
    part_rows: int = PART_ROWS,
    where: str | None = None,
    identity: Mapping[str, Any] | None = None,
    elsewhere: Elsewhere | None = None,
    correlate: Correlate | None = None,
    suppress: Mapping[str, Suppression] | None = None,
) -> ReplayRun:
    """Judge recorded activations again, and write the outcome as a new recording.

    Rows go in the order of (request id, position), findings are written in that order. A row
    whose decoding was recorded in the clear is judged on it, others as ``mode`` says. With mode
    "live" a recording judged by its own rules gives its own findings, byte for byte; with
    "missing" rows that were dropped live are looked at after all, which can only add findings.

    Where a recording is encrypted, so is the run.

    Called again after it was broken off, however that was, it goes on where it had come to, and
    the run is the same, byte for byte, as one made at once.

    Args:
        paths: recordings, directories of recordings, or Parquet files with activation vectors.
        run_directory: the new recording; must not exist as one, but for a replay broken off.
        decoder: None where there is no NLA at hand: rows without a decoding are dropped.
        mode: which rows are decoded; see :data:`nae_monitor.replay.decoding.Mode`.
        batch_size: vectors a decode call.
        progress: called with (rows done, rows in all).
        conclude: the verdict policy; by default no request becomes clean that was not.
        model: the model the decoder reads, where it is known.
        manifest: facts of this run, such as ``rules_sha256``; they replace the recording's own.
        content: None: that of the recordings, the strictest where they differ.
        hmac_key: needed to write content "hash".
        piece_bytes: how much of the recordings may be in memory at a time.
        part_rows: rows that are kept together; at most so many are done again after a kill.
        where: which rows, as an expression; see :mod:`nae_monitor.replay.where`. None: all.
        identity: what the judge and the decoder were made of, JSON-able. A replay broken off goes
            on only under the same.
        elsewhere: who decodes and judges in place of this process; see
            :mod:`nae_monitor.replay.cluster`.
        correlate: the aggregation rules. Where one of them groups several requests, findings and
            request records stay in memory until the last row is judged.
        suppress: suppression by rule id. Where given, the run directory gets ``alerts.jsonl``:
            every alert that the findings would have led to, sent or held back.

    Raises:
        RecordingError: a recording that is damaged, encrypted with a key that is not at hand, or
            of another model, layer or width.
        ConfigurationError: the run directory cannot be written.
        EngineError: the decoder failed on five batches in a row.
    """
    recordings = open_recordings(paths)
    refuse_mismatch(recordings, decoder, model)
    kept = KeptRows()
    index = RowIndex(recordings, None if where is None else Selection(where, recordings), kept)
    health = health or Health()
    content = content or common_content(recordings)
    shown = ContentFilter(content, hmac_key)
    facts = {**(manifest or {}), **({} if where is None else {"where": where})}
    options = [mode, batch_size, part_rows, content, shown.key_id, model]
    with _journal(run_directory, recordings, decoder, facts, options, identity or {}) as journal:
        rows = RowDecoder(decoder, mode, max(1, batch_size), health)
        others = None if elsewhere is None else elsewhere(journal.parts, index.parts(part_rows))
        work = _Replay(
            JudgedParts(RowJudge(rows, judge, health, shown), journal, part_rows, others),
            health,
            new_recording(run_directory, recordings, decoder, facts, content, hmac_key),
            conclude or cautious_verdict,
            correlate,
            ReplayedAlerts(suppress) if suppress is not None else None,
            kept,
        )
        work.run(recordings, index, piece_bytes, progress)
        return work.outcome()


@contextmanager
def _journal(
    run_directory: Path | str,
    recordings: Sequence[Recording],
    decoder: Decoder | None,
    facts: Mapping[str, Any],
    options: list[Any],
    identity: Mapping[str, Any],
) -> Iterator[Journal]:
    """What is kept on the way: gone once the replay has ended in order, else for the next start."""
    encrypted = is_encrypted(recordings)
    cipher = writing_cipher(newest_unix_ns(recordings)) if encrypted else PLAIN
    plan = resume_plan(recordings, decoder, facts, [*options, cipher.described], identity)
    journal = Journal(Path(run_directory), plan, cipher)
    try:
        yield journal
    except BaseException:
        journal.close()
        raise
    journal.finish()


@dataclass(slots=True)
class _Replay:
    """The mutable state of one replay."""

    parts: JudgedParts
    health: Health
    writer: RecordingWriter
    conclude: Conclude
    correlate: Correlate | None
    alerts: ReplayedAlerts | None
    kept: KeptRows
    _waiting: list[dict[int, OfRequest]] = field(default_factory=list)
    _current: dict[int, OfRequest] = field(default_factory=dict)  # by recording
    _current_id: str | None = None
    _concluded: set[tuple[int, str, int]] = field(default_factory=set)
    _counts: Counter[str] = field(default_factory=Counter)
    _dropped: Counter[str] = field(default_factory=Counter)

    def run(
        self,
        recordings: Sequence[Recording],
        index: RowIndex,
        piece_bytes: int,
        progress: Progress | None,
    ) -> None:
        """Judge every row, and close the new recording."""
        stops = [tuple(recording.stops()) for recording in recordings]  # damage shows at once
        with self.writer:
            done = 0
            for piece in index.pieces(piece_bytes, self.parts.part_rows):
                for part in self.parts.judged(piece):
                    self.take(part)
                    done += len(part)
                    if progress is not None:
                        progress(done, len(index))
            self.finish(index.requests())
            for found in stops:
                self.writer.write_stops(found)
            self.writer.close(stops_lost=stops_lost(recordings))

    def take(self, part: Sequence[tuple[Row, Judged]]) -> None:
        """Take judged rows in replay order."""
        for (request_id, _), rows in groupby(part, key=lambda item: _place(item[0])):
            if request_id != self._current_id:
                self._conclude_current()
                self._current_id = request_id
            for row, judged in rows:
                self._row(row, judged)

    def _row(self, row: Row, judged: Judged) -> None:
        recorded = row.recorded
        request = self._current.setdefault(row.recording, OfRequest())
        if row.request is not None:
            request.records[row.request.request.started_unix_ns] = row.request
        request_id = recorded.activation.request.request_id
        self.kept.saw(row.recording, recorded)
        if judged.findings is None:
            reason = judged.reason or "not_decoded"
            request.dropped[reason] += 1
            self._dropped[reason] += 1
            self.health.count(f"dropped.{reason}", request_id=request_id)
        else:
            self._judged(recorded.activation, judged.findings, request)
        if recorded.dropped_reason is not None:
            request.undone[recorded.dropped_reason] += 1
        self._counts["rows"] += 1
        if judged.decoding is not None:
            self._counts["reused" if judged.reused else "decoded"] += 1
        self.writer.write_activation(recorded.activation, judged.decoding, judged.reason)

    def _judged(
        self, activation: Activation, findings: tuple[Finding, ...], request: OfRequest
    ) -> None:
        request.judged += 1
        request.findings.extend(findings)
        if self.alerts is not None:
            self.alerts.judged(activation, findings)
        if self.correlate is not None:
            request.samples.append(self.correlate.sample(activation, findings))
        self.health.count("tokens.judged", request_id=activation.request.request_id)

    def _conclude_current(self) -> None:
        if self._current:
            self._waiting.append(self._current)
            self._current = {}
        if self.correlate is None or not self.correlate.across_requests:
            self._conclude_waiting()

    def _conclude_waiting(self) -> None:
        requests = [one for same_id in self._waiting for one in same_id.values()]
        if self.correlate is not None:
            more = correlated(self.correlate, [(one.samples, one.records) for one in requests])
            for request, findings in zip(requests, more, strict=True):
                request.findings.extend(findings)
                if self.alerts is not None:
                    self.alerts.aggregated(findings)
        for same_id in self._waiting:
            self._write_findings(f for request in same_id.values() for f in request.findings)
            for number, request in same_id.items():
                for started_unix_ns, record in sorted(request.records.items()):
                    self._concluded.add((number, record.request.request_id, started_unix_ns))
                    self._write_request(number, record, request)
        self._waiting.clear()

    def _write_findings(self, findings: Iterable[Finding]) -> None:
        ordered = sorted(findings, key=finding_sort_key)
        self.writer.write_findings(ordered)
        self._counts["findings"] += len(ordered)

    def _write_request(self, number: int, record: RequestRecord, request: OfRequest) -> None:
        left_out = self.kept.left_out(number, record)
        state, reasons = self.conclude(
            record, tuple(request.findings), sum(request.dropped.values()) + left_out
        )
        dropped = Counter(record.coverage.dropped_tokens)
        dropped[NOT_SELECTED] += left_out
        dropped.subtract(request.undone)
        dropped.update(request.dropped)
        if lacking := self.kept.lacking(number, record, request.records.values()):
            dropped[NOT_RECORDED] += lacking
            if state is not VerdictState.ALERT:
                state = VerdictState.UNDECIDED
                reasons = (*reasons, f"{lacking} rows judged live are not in the recording")
        coverage = replace(
            record.coverage,
            decoded_tokens=request.judged,
            judged_tokens=request.judged,
            dropped_tokens=MappingProxyType({k: n for k, n in sorted(dropped.items()) if n > 0}),
        )
        self.writer.write_request(replace(record, coverage=coverage, state=state, reasons=reasons))

    def finish(self, requests: Iterator[tuple[int, RequestRecord]]) -> None:
        """Conclude the last request, and those of which no row was recorded."""
        self._conclude_current()
        self._conclude_waiting()
        for number, record in requests:
            of_request = record.request
            turn = number, of_request.request_id, of_request.started_unix_ns
            if turn not in self._concluded:
                rest = OfRequest()
                if self.correlate is not None:
                    rest.findings.extend(self.correlate.ended(of_request))
                self._write_findings(rest.findings)
                self._write_request(number, record, rest)

    def outcome(self) -> ReplayRun:
        """The counts, and the alerts written down."""
        return ReplayRun(
            directory=self.writer.directory,
            rows=self._counts["rows"],
            reused=self._counts["reused"],
            decoded=self._counts["decoded"],
            judged=self._counts["rows"] - sum(self._dropped.values()),
            findings=self._counts["findings"],
            dropped=MappingProxyType(dict(sorted(self._dropped.items()))),
            alerts=self.alerts.write(self.writer.directory) if self.alerts is not None else {},
            not_recorded=self.kept.lacking_rows,
        )


def _place(row: Row) -> tuple[str, int]:
    activation = row.recorded.activation
    return activation.request.request_id, activation.position
