"""Builds the parts of a pipeline out of what it was given."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from nae_monitor.byte_queue import ByteQueue
from nae_monitor.decode import Decoder
from nae_monitor.decode.support import Recurrence, SupportCalibration
from nae_monitor.detect import RuleSet
from nae_monitor.health import Health
from nae_monitor.pipeline.acting import Acting
from nae_monitor.pipeline.blindness import Blindness
from nae_monitor.pipeline.brake import Brake
from nae_monitor.pipeline.decoding import DecodeStage
from nae_monitor.pipeline.follow_ups import FollowUps
from nae_monitor.pipeline.gate import Gate
from nae_monitor.pipeline.outcomes import Emitter, Outcomes
from nae_monitor.pipeline.ports import (
    AlertSink,
    Clock,
    Judging,
    Observer,
    OnConcluded,
    OnDecision,
)
from nae_monitor.pipeline.recorder import Recorder
from nae_monitor.pipeline.requests import Requests
from nae_monitor.pipeline.serving import ServingSide
from nae_monitor.pipeline.turn import Ended, Row
from nae_monitor.pipeline.worker import Worker
from nae_monitor.recording import RecordingWriter
from nae_monitor.screen import Screen
from nae_monitor.settings import Settings

_SEQUENCE = itertools.count()  # of alerts in this process, the monitor's own included


@dataclass(frozen=True, eq=False, slots=True)
class Given:
    """What :class:`nae_monitor.pipeline.Pipeline` is given; see there."""

    settings: Settings
    health: Health
    screen: Screen
    decoder: Decoder
    judge: Judging
    sinks: AlertSink
    open_recorder: Callable[[], RecordingWriter] | None
    observer: Observer | None
    clock: Clock
    rules: Callable[[], RuleSet]
    on_decision: OnDecision | None
    on_concluded: OnConcluded | None
    support: SupportCalibration | None = None


class Shared:
    """What both sides of the queue work with."""

    def __init__(
        self,
        settings: Settings,
        health: Health,
        *,
        sinks: AlertSink,
        clock: Clock,
        rules: Callable[[], RuleSet],
        nla_id: str,
    ) -> None:
        self.queue: ByteQueue[Row | Ended] = ByteQueue(settings.capture.queue_bytes)
        self.gate = Gate()
        self.requests = Requests(health, settings.policy)
        self.emit = Emitter(sinks, health, clock)
        self.blindness = Blindness(
            health,
            clock,
            model=settings.target.model,
            nla_id=nla_id,
            sequence=_SEQUENCE,
            emit=self.emit,
        )
        self.brake = Brake(settings.actions, health, self.requests, rules, clock)


def build_outcomes(given: Given, shared: Shared) -> Outcomes:
    """Opens the recording; ConfigurationError where that fails."""
    settings, health = given.settings, given.health
    recorder = Recorder(given.open_recorder, settings, health, shared.blindness, given.clock)
    acting = Acting(
        settings.actions,
        health,
        brake=shared.brake,
        screen=given.screen,
        recorder=recorder,
        on_decision=given.on_decision,
    )
    return Outcomes(
        health,
        shared.requests,
        recorder,
        shared.emit,
        nla_id=given.decoder.nla_id,
        sequence=_SEQUENCE,
        rules=given.rules,
        acting=acting,
        brake=shared.brake,
        on_concluded=given.on_concluded,
    )


def build_worker(given: Given, shared: Shared, outcomes: Outcomes, follow_ups: FollowUps) -> Worker:
    """The background thread's work."""
    settings, health, clock = given.settings, given.health, given.clock
    expire_s = settings.screen.expire_s
    return Worker(
        health,
        queue=shared.queue,
        gate=shared.gate,
        decoding=DecodeStage(
            given.decoder, health, shared.blindness, clock, expire_s, settings.decode.cache
        ),
        judge=given.judge,
        recurrence=Recurrence(given.support),
        outcomes=outcomes,
        follow_ups=follow_ups,
        blindness=shared.blindness,
        observer=given.observer,
        batch_size=settings.nla.batch_size,
        clock=clock,
    )


def build_serving(
    settings: Settings,
    health: Health,
    shared: Shared,
    *,
    screen: Screen,
    clock: Clock,
    start_worker: Callable[[], None],
) -> ServingSide:
    """What runs in the serving threads; ``start_worker`` is called with the first request."""
    return ServingSide(
        settings.capture,
        settings.screen.budget,
        health,
        screen=screen,
        requests=shared.requests,
        queue=shared.queue,
        blindness=shared.blindness,
        clock=clock,
        start_worker=start_worker,
        brake=shared.brake,
    )
