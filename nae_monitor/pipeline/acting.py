"""Carries out what rules' actions ask for, as far as the configuration lets it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from nae_monitor.detect import Decision
from nae_monitor.health import Health
from nae_monitor.pipeline.brake import Brake, tokens_behind
from nae_monitor.pipeline.ports import OnDecision
from nae_monitor.pipeline.recorder import Recorder
from nae_monitor.pipeline.turn import Turn
from nae_monitor.records import Alert, Request, Stop, StopOutcome
from nae_monitor.screen import RaisableScreen, Screen
from nae_monitor.settings import ActionSettings

log = logging.getLogger("nae_monitor")


class Acting:
    """One decision at a time, on the background thread.

    Counts ``actions.KIND`` for what is carried out and ``actions.KIND.shadow`` for what is only
    told. ``on_decision`` hears of both, with :attr:`Decision.enforced` as it came out. Of stops
    that were ordered, ``actions.stop_generation.OUTCOME`` counts what came of them.
    """

    def __init__(
        self,
        settings: ActionSettings,
        health: Health,
        *,
        brake: Brake,
        screen: Screen,
        recorder: Recorder,
        on_decision: OnDecision | None,
    ) -> None:
        self._settings = settings
        self._health = health
        self._brake = brake
        self._screen = screen
        self._recorder = recorder
        self._on_decision = on_decision

    def act(self, turn: Turn, decision: Decision) -> None:
        """Do what one decision asks for, or tell what would have been done."""
        done = {
            "stop_generation": self._stop,
            "raise_sampling": self._raise,
            "capture": self._capture,
        }[decision.kind](turn, decision)
        self._health.count(f"actions.{decision.kind}{'' if done else '.shadow'}")
        if self._on_decision is not None:
            answer = self._on_decision(replace(decision, enforced=done))
            if decision.kind == "stop_generation" and done and isinstance(answer, bool):
                self._brake.confirm(decision.request_id, ended=answer)

    def marked(self, turn: Turn, alerts: Sequence[Alert]) -> list[Alert]:
        """A turn's alerts, each with what is known of its rule's wish to stop it."""
        wishes = turn.stop_wishes
        return [
            replace(alert, stop=self._as_known(turn, wishes[alert.rule_id]).outcome)
            if alert.rule_id in wishes
            else alert
            for alert in alerts
        ]

    def ended(self, turn: Turn) -> None:
        """Count what came of each stop ordered for a turn that is over; record what is new."""
        for wish in turn.stop_wishes.values():
            if wish.outcome is StopOutcome.REQUESTED:
                stop = self._as_known(turn, wish)
                self._health.count(f"actions.stop_generation.{stop.outcome}")
                if stop.outcome is not wish.outcome:
                    self._record(turn, stop)

    def _record(self, turn: Turn, stop: Stop) -> None:
        if not self._recorder.stop(stop):
            turn.stops_unrecorded = True

    def _as_known(self, turn: Turn, wish: Stop) -> Stop:
        """A wish with what came of it since."""
        if wish.outcome is not StopOutcome.REQUESTED:
            return wish
        order = turn.stop_orders.get(wish.rule_id)
        ended_at = order.ended_at if order is not None else None
        return replace(
            wish,
            outcome=self._brake.known(turn, wish.rule_id),
            behind_tokens=tokens_behind(wish.position, *ended_at) if ended_at else None,
            time_unix_ns=time.time_ns(),
        )

    def _stop(self, turn: Turn, decision: Decision) -> bool:
        outcome, why = self._brake.order(turn, decision)
        wish = turn.stop_wishes[decision.rule_id] = Stop(
            request_id=decision.request_id,
            started_unix_ns=turn.request.started_unix_ns,
            rule_id=decision.rule_id,
            rule_name=decision.rule_name,
            rule_version=decision.rule_version,
            position=decision.position,
            enforced=decision.enforced,
            outcome=outcome,
            time_unix_ns=time.time_ns(),
            why=why,
            within_tokens=decision.within_tokens,
        )
        self._record(turn, wish)
        log.warning(
            "rule %r %s request %r at token %d",
            decision.rule_name,
            "blocks" if outcome is StopOutcome.REQUESTED else outcome.value,
            decision.request_id,
            decision.position,
        )
        return outcome is StopOutcome.REQUESTED

    def _raise(self, turn: Turn, decision: Decision) -> bool:
        if not self._settings.raise_sampling or not isinstance(self._screen, RaisableScreen):
            return False
        scope, rate, tokens = decision.scope, decision.rate, decision.tokens
        if scope is None or rate is None or tokens is None:
            return False
        value = _scope_value(turn.request, scope)
        if value is None:  # no session or tenant is known: what can be told apart is the request
            scope, value = "request", turn.request.request_id
        return self._screen.raise_sampling(scope, value, rate, tokens)

    def _capture(self, turn: Turn, decision: Decision) -> bool:
        return self._recorder.capture(turn)


def _scope_value(request: Request, scope: str) -> str | None:
    values = {"request": request.request_id, "session": request.session_id}
    return values.get(scope, request.tenant) or None
