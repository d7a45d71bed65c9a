"""From captured rows to findings, alerts and verdicts: one queue, one background thread.

The serving thread screens, copies the chosen rows to the CPU and puts them on a queue bounded in
bytes; everything that takes time happens in the thread behind it. What cannot be taken or done
is counted by reason under ``dropped.*``, and no request with such a loss is called clean.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from nae_monitor.alert import AlertFolder
from nae_monitor.byte_queue import ByteQueue
from nae_monitor.decode import Decoder, screen_vectors
from nae_monitor.errors import EngineError
from nae_monitor.health import Health
from nae_monitor.integrity import blind_alert
from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Alert,
    Decoding,
    Evidence,
    Finding,
    Request,
    RowBatch,
    Transcript,
    Verdict,
)
from nae_monitor.screen import Screen
from nae_monitor.settings import Settings
from nae_monitor.token_text import TokenText
from nae_monitor.transcripts import transcript_at
from nae_monitor.verdicts import judge_request

TAKE_WAIT_S = 0.05
VERDICT_LIMIT = 10_000  # finished requests remembered; the oldest is forgotten first
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class Judging(Protocol):
    """The judge as the pipeline sees it."""

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        """The findings for one decoding; see :class:`nae_monitor.detect.Judge`."""
        ...


class AlertSink(Protocol):
    """Where alerts go; see :class:`nae_monitor.alert.Sink` for the contract."""

    def emit(self, alert: Alert) -> None:
        """Take one alert without waiting."""
        ...


Observer = Callable[[Activation, Decoding, Sequence[Finding]], None]


@dataclass(slots=True)
class _Live:
    """One request that is being generated."""

    request: Request
    prompt_ids: tuple[int, ...]
    text: TokenText
    output_ids: list[int] = field(default_factory=list)
    prompt_texts: list[str] = field(default_factory=list)
    output_texts: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def transcript(self, position: int) -> Transcript:
        """What had been said at ``position``; only the background thread calls this."""
        self.write_texts()
        return transcript_at(
            "".join(self.prompt_texts), self.output_texts, len(self.prompt_ids), position
        )

    def write_texts(self) -> None:
        """Bring the token texts up to date with the token ids."""
        self.text.extend(self.prompt_ids, self.prompt_texts)
        known = len(self.output_texts)
        if known < len(self.output_ids):
            ids = [*self.prompt_ids, *self.output_ids]
            texts = [*self.prompt_texts, *self.output_texts]
            self.text.extend(ids, texts)
            self.output_texts.extend(texts[len(self.prompt_ids) + known :])


@dataclass(frozen=True, eq=False, slots=True)
class _Row:
    activation: Activation
    live: _Live
    queued_s: float


@dataclass(frozen=True, eq=False, slots=True)
class _Finished:
    live: _Live


def _with_text(row: _Row) -> _Row:
    """The row with its token's text, worked out away from the serving thread."""
    row.live.write_texts()
    texts = [*row.live.prompt_texts, *row.live.output_texts]
    position = row.activation.position
    token = texts[position] if position < len(texts) else ""
    return replace(row, activation=replace(row.activation, token=token))


class Pipeline:
    """Implements the capture stage's listener; owns the background thread."""

    def __init__(
        self,
        settings: Settings,
        health: Health,
        *,
        screen: Screen,
        decoder: Decoder,
        judge: Judging,
        sinks: AlertSink,
        recorder: RecordingWriter | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._health = health
        self._screen = screen
        self._decoder = decoder
        self._judge = judge
        self._sinks = sinks
        self._recorder = recorder
        self._observer = observer
        self._clock = clock
        self._folder = AlertFolder(decoder.nla_id)
        self._queue: ByteQueue[_Row | _Finished] = ByteQueue(settings.capture.queue_bytes)
        self._live: dict[str, _Live] = {}
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        self._groups: dict[str, list[str]] = {}
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._reported_blind: set[str] = set()
        self._text: TokenText | None = None
        self._thread = threading.Thread(target=self._run, name="nae-monitor", daemon=True)
        self._thread.start()

    # -- called in the serving thread -------------------------------------------------------

    def use_tokenizer(self, text: TokenText) -> None:
        """Set how token ids of requests started from now on become text."""
        self._text = text

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        """Begin, or go on with, a request whose prompt is ``prompt_token_ids``."""
        assert self._text is not None, "use_tokenizer comes first"
        live = _Live(request, prompt_token_ids, self._text)
        with self._changed:
            before = self._verdicts.pop(request.request_id, None)
            if before is not None:  # a further turn: what was found stays found
                live.findings.extend(before.findings)
            self._live[request.request_id] = live
            members = self._groups.setdefault(request.group_id, [])
            if request.request_id not in members:
                members.append(request.request_id)

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        """Append generated tokens."""
        self._live[request_id].output_ids.extend(token_ids)

    def rows(self, batch: RowBatch) -> None:
        """Screen a batch and queue what the screen bought."""
        for index in batch.request_index:
            self._health.count("tokens.screened", request_id=batch.requests[index].request_id)
        choices = self._screen.choose(batch)
        if not choices:
            return
        places = torch.tensor([c.row for c in choices], device=batch.vectors.device)
        dtype = _DTYPES[self._settings.capture.vector_dtype]
        copied = batch.vectors.detach().index_select(0, places).to(dtype).cpu()
        now_s, now_unix_ns = self._clock(), time.time_ns()
        size_bytes = copied[0].numel() * copied[0].element_size()
        for vector, choice in zip(copied, choices, strict=True):
            row = choice.row
            activation = Activation(
                request=batch.requests[batch.request_index[row]],
                position=batch.positions[row],
                token_id=batch.token_ids[row],
                token="",
                phase=batch.phases[row],
                layer=batch.layer,
                vector=vector.clone(),
                reason=choice.reason,
                scores=choice.scores,
                captured_unix_ns=now_unix_ns,
            )
            request_id = activation.request.request_id
            self._health.count("tokens.sampled", request_id=request_id)
            queued = _Row(activation, self._live[request_id], now_s)
            if not self._queue.offer(queued, size_bytes):
                self._health.count("dropped.queue_full", request_id=request_id)

    def request_finished(self, request_id: str) -> None:
        """Queue the end of a request behind its rows."""
        self._queue.offer(_Finished(self._live[request_id]), 0)

    # -- called by the user -----------------------------------------------------------------

    def verdict(self, request_id: str, wait_s: float) -> list[Verdict]:
        """Verdicts of the sequences under ``request_id`` once all are finished.

        Waits at most ``wait_s``. [] where the id is unknown or some sequence is unfinished.
        """
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while True:
                members = self._groups.get(request_id, [request_id])
                found = [self._verdicts[m] for m in members if m in self._verdicts]
                left_s = deadline_s - time.monotonic()
                if len(found) == len(members):
                    return found
                if left_s <= 0:
                    return []
                self._changed.wait(left_s)

    def close(self, deadline_s: float) -> bool:
        """Work off the queue for at most ``deadline_s``; what is left is counted as dropped."""
        self._stopping.set()
        self._thread.join(deadline_s)
        if not self._thread.is_alive():
            return True
        left = self._queue.take(len(self._queue), 0.0)
        for item in left:
            if isinstance(item, _Row):
                self._drop(item.activation, "shutdown")
        return False

    # -- the background thread --------------------------------------------------------------

    def _run(self) -> None:
        while not (self._stopping.is_set() and not len(self._queue)):
            taken = self._queue.take(self._settings.nla.batch_size, TAKE_WAIT_S)
            with self._health.guard("pipeline"):
                self._work(taken)
            if self._recorder is not None and not taken:
                with self._health.guard("record"):
                    self._recorder.tick()
        with self._health.guard("pipeline"):
            self._emit(self._folder.finish_all())

    def _work(self, taken: Sequence[_Row | _Finished]) -> None:
        rows = self._usable([_with_text(item) for item in taken if isinstance(item, _Row)])
        for row, decoding in self._decode(rows):
            with self._health.guard("judge"):
                self._judge_one(row, decoding)
        for item in taken:
            if isinstance(item, _Finished):
                self._finish(item.live)

    def _decode(self, rows: Sequence[_Row]) -> list[tuple[_Row, Decoding]]:
        if not rows:
            return []
        try:
            decodings = self._decoder.decode(torch.stack([r.activation.vector for r in rows]))
        except EngineError as error:
            return self._undecoded(rows, "engine", error)
        except Exception as error:  # noqa: BLE001 - the boundary: counted and reported as blind
            return self._undecoded(rows, "decode_failed", error)
        self._health.succeeded("decode")
        for row in rows:
            self._health.count("tokens.decoded", request_id=row.activation.request.request_id)
        return list(zip(rows, decodings, strict=True))

    def _undecoded(
        self, rows: Sequence[_Row], reason: str, error: Exception
    ) -> list[tuple[_Row, Decoding]]:
        self._health.failed("decode", error)
        for row in rows:
            self._drop(row.activation, reason)
        why = f"{len(rows)} rows dropped: {type(error).__name__}"
        self._report_blind("decode", why, rows[-1].activation.request)
        return []

    def _usable(self, rows: Sequence[_Row]) -> list[_Row]:
        now_s = self._clock()
        fresh: list[_Row] = []
        for row in rows:
            if now_s - row.queued_s > self._settings.screen.expire_s:
                self._drop(row.activation, "expired")
            else:
                fresh.append(row)
        if not fresh:
            return []
        vectors = torch.stack([row.activation.vector for row in fresh])
        check = screen_vectors(vectors, self._decoder.d_model)
        for row, reason in zip(fresh, check.reasons, strict=True):
            if reason is not None:
                self._drop(row.activation, f"bad_vector_{reason}")
        return [row for row, reason in zip(fresh, check.reasons, strict=True) if reason is None]

    def _drop(self, activation: Activation, reason: str) -> None:
        self._health.count(f"dropped.{reason}", request_id=activation.request.request_id)
        if self._recorder is not None and self._settings.record.keep == "candidates":
            with self._health.guard("record"):
                self._recorder.write_activation(activation, None, reason)

    def _judge_one(self, row: _Row, decoding: Decoding) -> None:
        activation = row.activation
        transcript = row.live.transcript(activation.position)
        findings = self._judge.judge(activation, decoding, transcript)
        self._health.count("tokens.judged", request_id=activation.request.request_id)
        row.live.findings.extend(findings)
        for finding in findings:
            evidence = Evidence(
                finding=finding,
                token=activation.token,
                phase=activation.phase,
                explanation=decoding.text,
                transcript=transcript,
                fve=decoding.fve,
                cosine=decoding.cosine,
            )
            self._emit(self._folder.add(finding, evidence, activation.request))
        self._record(activation, decoding, findings)
        if self._observer is not None:
            with self._health.guard("observer"):
                self._observer(activation, decoding, findings)

    def _record(
        self, activation: Activation, decoding: Decoding, findings: Sequence[Finding]
    ) -> None:
        if self._recorder is not None:
            with self._health.guard("record"):
                self._recorder.write_activation(activation, decoding)
                self._recorder.write_findings(findings)

    def _finish(self, live: _Live) -> None:
        request_id = live.request.request_id
        with self._changed:
            if self._live.get(request_id) is live:  # else a further turn has begun
                del self._live[request_id]
        with self._health.guard("alert"):
            self._emit(self._folder.finish(request_id))
        verdict = judge_request(
            request_id, live.findings, self._health.coverage(request_id), self._settings.policy
        )
        self._write_request(live, verdict)
        with self._changed:
            self._verdicts[request_id] = verdict
            while len(self._verdicts) > VERDICT_LIMIT:
                self._forget(next(iter(self._verdicts)))
            self._changed.notify_all()
        for component in ("capture", "screen"):
            if self._health.is_open(component):
                self._report_blind(component, "its circuit is open", live.request)

    def _forget(self, request_id: str) -> None:
        self._verdicts.pop(request_id, None)
        for group_id in [g for g, members in self._groups.items() if request_id in members]:
            del self._groups[group_id]

    def _write_request(self, live: _Live, verdict: Verdict) -> None:
        if self._recorder is None:
            return
        with self._health.guard("record"):
            live.write_texts()
            self._recorder.write_request(
                RequestRecord(
                    request=live.request,
                    prompt_text="".join(live.prompt_texts),
                    prompt_tokens=len(live.prompt_ids),
                    output_tokens=len(live.output_ids),
                    coverage=verdict.coverage,
                    state=verdict.state,
                    reasons=verdict.reasons,
                    prompt_token_ids=live.prompt_ids,
                    output_token_ids=tuple(live.output_ids),
                    prompt_token_texts=tuple(live.prompt_texts),
                    output_token_texts=tuple(live.output_texts),
                    finished_unix_ns=time.time_ns(),
                )
            )

    def _report_blind(self, component: str, why: str, request: Request) -> None:
        """Raise the monitor's own alert, once a component."""
        if component not in self._reported_blind:
            self._reported_blind.add(component)
            self._health.count("alerts.monitor_blind")
            self._emit([blind_alert(component, why, request, self._decoder.nla_id)])

    def _emit(self, alerts: Iterable[Alert]) -> None:
        for alert in alerts:
            self._health.count("alerts.emitted")
            self._sinks.emit(alert)
