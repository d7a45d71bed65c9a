"""A worker: what serving processes ship goes through the same pipeline as inline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from nae_monitor.alert import Sinks
from nae_monitor.detect import Decision
from nae_monitor.health import Health
from nae_monitor.live_recording import open_live_recording
from nae_monitor.parts import Parts
from nae_monitor.pipeline import Observer, Pipeline
from nae_monitor.placement.frame import Kind
from nae_monitor.placement.links import Captured
from nae_monitor.placement.orders import RaiseSampling, Scope
from nae_monitor.placement.receiver import Receiver
from nae_monitor.placement.reception import Reception
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import Choice, RowBatch
from nae_monitor.settings import Settings
from nae_monitor.token_text import TokenText

SINKS_SHARE = 0.2  # of a deadline, kept for delivering alerts


class RemoteScreen:
    """Stands for the screens of the serving processes. Implements ``RaisableScreen``."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def choose(self, batch: RowBatch) -> list[Choice]:
        """Nothing: rows come chosen."""
        return []

    def raise_sampling(self, scope: Scope, value: str, rate: float, tokens: int) -> bool:
        """Ask every serving process; False where there is none."""
        header = RaiseSampling(scope, value, rate, tokens).header()
        guests = self._receiver.guests()
        for guest in guests:
            self._receiver.answer(guest, Kind.RAISE, header)
        return bool(guests)


class Worker:
    """One ipc endpoint's worker; :meth:`run` receives until :meth:`stop`.

    Args:
        settings: the whole configuration.
        parts: the decoder and the judge.
        sinks: take alerts; closed with the worker.
        health: counts what happens.
        text: of the target's tokenizer.
        special_token_ids: of the same, for recordings.
        number: which of the endpoints is this worker's, from 0.
        observer: sees every judged row.

    Raises:
        ConfigurationError: the endpoint is in use, or the recording cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        sinks: Sinks,
        health: Health,
        *,
        text: TokenText,
        special_token_ids: Sequence[int] = (),
        number: int = 0,
        observer: Observer | None = None,
    ) -> None:
        self.health = health
        self.endpoint = settings.ipc.addresses[number]
        self._settings = settings
        self._parts = parts
        self._sinks = sinks
        self._stopping = threading.Event()
        decoder = parts.decoder
        captured = Captured(settings.target.model, decoder.layer, decoder.d_model)
        self._receiver = Receiver(
            self.endpoint, captured, decoder.nla_id, settings.ipc, health, time.monotonic
        )
        try:
            self._pipeline = self._build(observer, special_token_ids)
        except BaseException:
            self._receiver.close()
            raise
        self._reception = Reception(
            captured, self._pipeline.intake, text, health, self._receiver.answer
        )

    def run(self, on_ready: Callable[[], None] = lambda: None, deadline_s: float = 10.0) -> bool:
        """Receive until :meth:`stop`; then work off what came, for about ``deadline_s``.

        Returns:
            True if nothing was left undone.
        """
        live, reload_s = self._parts.live, self._settings.detect.reload_s
        if live is not None and reload_s is not None:
            live.start(reload_s)
        closed = threading.Event()
        receiving = threading.Thread(
            target=self._receiver.run, args=(self._reception, closed), name="nae-receiver"
        )
        receiving.start()
        try:
            on_ready()
            self._stopping.wait()
        finally:
            if live is not None:
                live.stop()
            self._receiver.take_no_more()
            done = self._pipeline.close(deadline_s * (1 - SINKS_SHARE))
            closed.set()
            receiving.join()
            delivered = self._sinks.close(SINKS_SHARE * deadline_s)
        return done and delivered

    def stop(self) -> None:
        """Let :meth:`run` end; for a signal handler or another thread."""
        self._stopping.set()

    def _build(self, observer: Observer | None, special_token_ids: Sequence[int]) -> Pipeline:
        settings, parts = self._settings, self._parts

        def open_recorder() -> RecordingWriter:
            return open_live_recording(settings, parts, special_token_ids)

        return Pipeline(
            settings,
            self.health,
            screen=RemoteScreen(self._receiver),
            decoder=parts.decoder,
            judge=parts.live or parts.judge,
            rules=parts.rules_in_force,
            sinks=self._sinks,
            open_recorder=open_recorder if settings.record.dir is not None else None,
            observer=observer,
            on_decision=lambda decision: self._decided(decision),
            on_concluded=lambda turn, concluded: self._reception.concluded(turn, concluded),
        )

    def _decided(self, decision: Decision) -> None:
        self._reception.decided(decision)
