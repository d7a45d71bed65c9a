"""The whole pipeline in one process: what captures, what decodes and judges, and the queue."""

from __future__ import annotations

import time
from collections.abc import Callable

from nae_monitor.decode import Decoder
from nae_monitor.decode.support import SupportCalibration
from nae_monitor.detect import RuleSet
from nae_monitor.health import Health
from nae_monitor.pipeline.assembly import (
    Given,
    Shared,
    build_outcomes,
    build_serving,
    build_worker,
)
from nae_monitor.pipeline.belt import Belt
from nae_monitor.pipeline.intake import Intake
from nae_monitor.pipeline.ports import (
    AlertSink,
    Clock,
    Judging,
    Observer,
    OnConcluded,
    OnDecision,
)
from nae_monitor.recording import RecordingWriter
from nae_monitor.screen import Screen
from nae_monitor.settings import Settings


class Pipeline(Belt):
    """From captured rows to findings, alerts and verdicts; owns the queue and the thread.

    Rows come from taps by :meth:`listener`, or from another process by :attr:`intake`.

    After ``fork`` the child's pipeline knows no request, writes a recording of its own, and
    starts its thread with the first request.

    Args:
        settings: the whole configuration.
        health: counts what happens and what does not.
        screen: chooses rows, in the serving thread.
        decoder: called from the background thread only.
        judge: as the decoder.
        rules: the rule set in force, for aggregation and suppression; none without it.
        sinks: take alerts; they stay the caller's to close, after :meth:`close`.
        open_recorder: opens a recording, once a process; the pipeline closes it.
        observer: sees every judged row.
        on_decision: is told what rules' actions ask for.
        on_concluded: is told what each turn came to.
        support: of the decoder's pair; without it P(unsupported) is unknown.
        clock: seconds, monotonic; for expiry and retries.

    Raises:
        ConfigurationError: the recording cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        *,
        screen: Screen,
        decoder: Decoder,
        judge: Judging,
        sinks: AlertSink,
        open_recorder: Callable[[], RecordingWriter] | None = None,
        observer: Observer | None = None,
        clock: Clock = time.monotonic,
        rules: Callable[[], RuleSet] = lambda: RuleSet.of(()),
        on_decision: OnDecision | None = None,
        on_concluded: OnConcluded | None = None,
        support: SupportCalibration | None = None,
    ) -> None:
        given = Given(
            settings=settings,
            health=health,
            screen=screen,
            decoder=decoder,
            judge=judge,
            sinks=sinks,
            open_recorder=open_recorder,
            observer=observer,
            clock=clock,
            rules=rules,
            on_decision=on_decision,
            on_concluded=on_concluded,
            support=support,
        )
        shared = Shared(
            settings, health, sinks=sinks, clock=clock, rules=rules, nla_id=decoder.nla_id
        )
        outcomes = build_outcomes(given, shared)
        serving = build_serving(
            settings,
            health,
            shared,
            screen=screen,
            clock=clock,
            start_worker=self._start_worker,
        )
        super().__init__(
            health,
            shared,
            serving=serving,
            work=build_worker(given, shared, outcomes, serving.follow_ups),
            aftermath=outcomes,
        )
        self.intake = Intake(health, shared, clock)
