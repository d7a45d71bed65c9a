"""A worker: what serving processes ship goes through the same pipeline as inline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from nae_monitor.alert import Sinks, build_sinks
from nae_monitor.detect import Decision
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.live_recording import open_live_recording
from nae_monitor.models import load_target_tokenizer
from nae_monitor.parts import Parts, check_recording, collect, load_parts
from nae_monitor.pipeline import Observer, Pipeline
from nae_monitor.placement.carrier import Captured
from nae_monitor.placement.frame import Kind
from nae_monitor.placement.orders import RaiseSampling, Scope
from nae_monitor.placement.outpost import unfit_actions
from nae_monitor.placement.pulse import Pulse
from nae_monitor.placement.reception import Guest, Reception
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import Choice, RowBatch
from nae_monitor.settings import Settings
from nae_monitor.token_text import TokenText

SINKS_SHARE = 0.2  # of a deadline, kept for delivering alerts


class WayIn(Protocol):
    """Where frames come in, and answers go out where there is a way back."""

    def answer(self, guest: Guest, kind: Kind, header: dict[str, Any]) -> None:
        """Send a message to a guest, soon; from any thread."""
        ...

    def guests(self) -> list[Guest]:
        """All serving processes that can be told something now."""
        ...

    def take_no_more(self) -> None:
        """Take no further frames; from any thread."""
        ...

    def run(self, turns: Reception, stopping: threading.Event, beat: Callable[[], None]) -> None:
        """Receive until ``stopping`` is set; call ``beat`` several times a second."""
        ...

    def close(self) -> None:
        """Free what was opened, where :meth:`run` was never called."""
        ...


class RemoteScreen:
    """Stands for the screens of the serving processes. Implements ``RaisableScreen``."""

    def __init__(self, receiver: WayIn) -> None:
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
    """One ipc endpoint's worker, or one of a topic's group; :meth:`run` receives until told.

    Args:
        settings: the whole configuration.
        parts: the decoder and the judge.
        sinks: take alerts; closed with the worker.
        health: counts what happens.
        text: of the target's tokenizer.
        special_token_ids: of the same, for recordings.
        number: which of the endpoints is this worker's, from 0.
        observer: sees every judged row.
        alive_file: is touched each second while the worker takes what comes.

    Raises:
        ConfigurationError: the endpoint is in use, or a file cannot be written.
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
        alive_file: Path | None = None,
    ) -> None:
        self.health = health
        self._pulse = Pulse(alive_file, health)
        self._settings = settings
        self._parts = parts
        self._sinks = sinks
        self._stopping = threading.Event()
        decoder = parts.decoder
        captured = Captured(settings.target.model, decoder.layer, decoder.d_model)
        self.endpoint, self._receiver = _way_in(settings, captured, decoder.nla_id, health, number)
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
            target=self._receiver.run,
            args=(self._reception, closed, self._pulse.beat),
            name="nae-receiver",
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
            self._pulse.end()
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
            support=parts.support,
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


def _way_in(
    settings: Settings, captured: Captured, nla_id: str, health: Health, number: int
) -> tuple[str, WayIn]:
    """Where frames come in, in words, and what takes them."""
    if settings.capture.placement == "kafka":
        from nae_monitor.placement.topic_receiver import TopicReceiver

        topic = settings.activations
        name = f"kafka {topic.bootstrap} {topic.topic}, group {topic.group}"
        return name, TopicReceiver(captured, topic, health, time.monotonic)
    try:
        from nae_monitor.placement.receiver import Receiver
    except ImportError as error:
        place, mend = Mark("capture.placement ipc"), "pip install nae-monitor[ipc]"
        raise ConfigurationError([Problem(place, "pyzmq is not installed", mend)]) from error
    address = settings.ipc.addresses[number]
    return address, Receiver(address, captured, nla_id, settings.ipc, health, time.monotonic)


def _refused_by_brokers(settings: Settings) -> list[Problem]:
    """Why this worker may not read the topic; nothing where no broker answers: it waits for one."""
    if settings.capture.placement != "kafka":
        return []
    from nae_monitor.alert import kafka_probe
    from nae_monitor.placement.topic import PLACE, unsafe_connection

    unsafe = unsafe_connection(settings.activations)
    return unsafe or kafka_probe.problems_of(settings.activations.connection, PLACE)


def open_worker(
    settings: Settings,
    *,
    number: int = 0,
    console: Console | None = None,
    alive_file: Path | None = None,
) -> Worker:
    """A worker with everything that a configuration names.

    Args:
        settings: the whole configuration; its placement is ``ipc`` or ``kafka``.
        number: which of ``ipc.endpoints`` is this worker's, from 0.
        console: the console to print alerts on.
        alive_file: is touched each second while the worker takes what comes.

    Raises:
        ConfigurationError: every problem of the configuration, the rules, the checkpoints, the
            tokenizer, the sinks, the recording and the endpoint at once.
    """
    health = Health()
    problems = unfit_actions(settings)
    if not 0 <= number < len(settings.ipc.addresses):
        many = len(settings.ipc.addresses)
        message = f"there is no endpoint number {number}; ipc.endpoints names {many}"
        problems.append(Problem(Mark("ipc.endpoints"), message, "count from 0"))
    if settings.record.dir is not None:
        collect(problems, lambda: check_recording(settings.record))
    problems += _refused_by_brokers(settings)
    tokenizer = collect(problems, lambda: load_target_tokenizer(settings.target.model))
    parts = collect(problems, lambda: load_parts(settings, health))
    sinks = collect(
        problems, lambda: build_sinks(settings.alert, settings.privacy, health, console=console)
    )
    try:
        if parts is None or sinks is None or tokenizer is None or problems:
            raise ConfigurationError(problems)
        return Worker(
            settings,
            parts,
            sinks,
            health,
            text=TokenText(tokenizer),
            special_token_ids=sorted(tokenizer.all_special_ids),
            number=number,
            alive_file=alive_file,
        )
    except ConfigurationError:
        if sinks is not None:
            sinks.close(1.0)
        raise
