"""Carries out what rules' actions ask for, as far as the configuration lets it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from nae_monitor.detect import Decision
from nae_monitor.health import Health
from nae_monitor.pipeline.brake import Brake
from nae_monitor.pipeline.ports import OnDecision
from nae_monitor.pipeline.recorder import Recorder
from nae_monitor.pipeline.turn import Turn
from nae_monitor.records import Alert, Request, StopOutcome
from nae_monitor.screen import RaisableScreen, Screen
from nae_monitor.settings import ActionSettings

log = logging.getLogger("nae_monitor")


class Acting:
    """One decision at a time, on the background thread.

    Counts ``actions.KIND`` for what is carried out and ``actions.KIND.shadow`` for what is only
    told. ``on_decision`` hears of both, with :attr:`Decision.enforced` as it came out.
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
            self._on_decision(replace(decision, enforced=done))

    def marked(self, turn: Turn, alerts: Sequence[Alert]) -> list[Alert]:
        """A finished turn's alerts, each with what came of its rule's wish to stop it."""
        return [replace(alert, stop=_outcome(turn, alert.rule_id)) for alert in alerts]

    def _stop(self, turn: Turn, decision: Decision) -> bool:
        outcome = self._brake.order(turn, decision)
        turn.stop_wishes[decision.rule_id] = outcome
        said = "blocks" if outcome is None else outcome.value
        log.warning(
            "rule %r %s request %r at token %d",
            decision.rule_name,
            said,
            decision.request_id,
            decision.position,
        )
        return outcome is None

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


def _outcome(turn: Turn, rule_id: str) -> StopOutcome | None:
    if rule_id not in turn.stop_wishes:
        return None
    told = turn.stop_wishes[rule_id]
    if told is not None:
        return told
    order = turn.stop_order
    return StopOutcome.BLOCKED if order and order.carried_out else StopOutcome.TOO_LATE
