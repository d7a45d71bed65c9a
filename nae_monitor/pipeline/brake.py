"""Ends generations that rules ask to end, within the tokens that they allow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nae_monitor.detect import Decision, RuleSet
from nae_monitor.health import Health
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.requests import Requests
from nae_monitor.pipeline.turn import StopOrder, Turn
from nae_monitor.records import StopOutcome
from nae_monitor.settings import ActionSettings

PERIOD_S = 60.0  # of max_stops_per_min


@dataclass(frozen=True, slots=True)
class _Limit:
    rules: RuleSet
    tokens: int | None  # the least within_tokens of rules that enforce; None: none asks for one


class Brake:
    """Orders come from the background thread; :meth:`stops` is asked by generating threads.

    Generating threads never wait here unless ``hold_s`` is set: then a sequence waits, for at
    most that long in all, while a row of it that is not judged yet lies as many tokens behind as
    the strictest rule allows.
    """

    def __init__(
        self,
        settings: ActionSettings,
        health: Health,
        requests: Requests,
        rules: Callable[[], RuleSet],
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._health = health
        self._requests = requests
        self._rules = rules
        self._clock = clock
        self._limit: _Limit | None = None
        self._stops_s: deque[float] = deque()
        self.enforces = settings.stop_generation == "enforce"
        self.holds = self.enforces and settings.hold_s > 0
        self.renew()

    def renew(self) -> None:
        """Hold nobody, with a lock of its own: for a forked child."""
        self._changed = threading.Condition()
        self._released = False

    def release(self) -> None:
        """Hold nobody any more: nothing will be judged from now on."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    # -- the background thread ----------------------------------------------------------------

    def order(self, turn: Turn, decision: Decision) -> tuple[StopOutcome, str]:
        """Take a rule's wish to end a turn.

        Returns:
            REQUESTED where it is ordered (what comes of it shows later), else what came of it;
            and what kept a WOULD_BLOCK from being ordered.
        """
        if not decision.enforced or not self.enforces:
            holds = "the configuration" if decision.enforced else "the rule"
            return StopOutcome.WOULD_BLOCK, f"{holds} is in shadow"
        if turn.finished_unix_ns:
            return StopOutcome.TOO_LATE, ""
        order = turn.stop_order
        if order is None or order.outcome is StopOutcome.REFUSED:
            if not self._may_stop():
                self._health.count("actions.stop_generation.over_limit")
                limit = self._settings.max_stops_per_min
                return StopOutcome.WOULD_BLOCK, f"more than {limit} stops a minute"
            order = StopOrder([])
        if decision.within_tokens is not None:
            order.limits.append((decision.position, decision.within_tokens))
        turn.stop_orders[decision.rule_id] = order
        with self._changed:
            turn.stop_order = order
            self._changed.notify_all()
        return StopOutcome.REQUESTED, ""

    def ordered_elsewhere(self, turn: Turn, position: int, within_tokens: int | None) -> None:
        """Take over the order to end a turn that the brake of another process has given."""
        with self._changed:
            order = turn.stop_order
            if order is None or order.outcome is StopOutcome.REFUSED:
                order = StopOrder([])
            if within_tokens is not None:
                order.limits.append((position, within_tokens))
            turn.stop_order = order
            self._changed.notify_all()

    def known(self, turn: Turn, rule_id: str) -> StopOutcome:
        """What is known now of a rule's order to end a turn."""
        order = turn.stop_orders.get(rule_id)
        if order is not None and order.outcome is not None:
            return order.outcome
        if not turn.finished_unix_ns:
            return StopOutcome.REQUESTED
        return StopOutcome.TOO_LATE if turn.asks_brake else StopOutcome.UNKNOWN

    def settled(self, turn: Turn, position: int) -> None:
        """A row of a turn was judged or dropped."""
        if self.holds:
            with self._changed:
                turn.unjudged.discard(position)
                self._changed.notify_all()

    def _may_stop(self) -> bool:
        now_s = self._clock()
        while self._stops_s and self._stops_s[0] <= now_s - PERIOD_S:
            self._stops_s.popleft()
        if len(self._stops_s) >= self._settings.max_stops_per_min:
            return False
        self._stops_s.append(now_s)
        return True

    # -- generating threads -------------------------------------------------------------------

    def queued(self, turn: Turn, position: int) -> None:
        """A row of a turn waits for its judgement from now on."""
        if self.holds:
            with self._changed:
                turn.unjudged.add(position)

    def should_stop(self, request_id: str) -> bool:
        """Whether the sequence is to end; never waits."""
        turn = self._requests.turn(request_id)
        return turn is not None and _is_to_end(turn)

    def stops(self, request_id: str, length_tokens: int, generated_tokens: int) -> bool:
        """See :class:`nae_monitor.capture.Stopping`."""
        turn = self._requests.turn(request_id)
        if turn is None:
            return False
        turn.asks_brake = True
        if self.holds and turn.unjudged:
            self._hold(turn, length_tokens, generated_tokens)
        return _is_to_end(turn)

    def stopped(self, request_id: str, length_tokens: int, generated_tokens: int) -> None:
        """See :class:`nae_monitor.capture.Stopping`."""
        turn = self._requests.turn(request_id)
        if turn is None or turn.stop_order is None:
            return
        order = turn.stop_order
        order.ended_at = (length_tokens, generated_tokens)
        order.outcome = StopOutcome.BLOCKED
        self._health.count("actions.stopped_sequences", request_id=request_id)
        if any(
            tokens_behind(position, length_tokens, generated_tokens) > within_tokens
            for position, within_tokens in tuple(order.limits)
        ):
            self._health.count("actions.stop_generation.over_budget", request_id=request_id)

    def confirm(self, request_id: str, *, ended: bool) -> bool:
        """A host says what it made of the order to end a sequence; never waits.

        Returns:
            False where no order is open: none was given, it was answered before, or the
            sequence's rows are all worked off and its alerts are out (counted).
        """
        for turn in self._requests.turns(request_id):
            order = turn.stop_order
            if order is not None and order.outcome is None:
                order.outcome = StopOutcome.BLOCKED if ended else StopOutcome.REFUSED
                if ended:
                    self._health.count("actions.stopped_sequences", request_id=request_id)
                return True
        self._health.count("actions.stop_generation.confirmed_in_vain")
        return False

    def _hold(self, turn: Turn, length_tokens: int, generated_tokens: int) -> None:
        limit_tokens = self._limit_tokens()
        if limit_tokens is None:
            return
        began_s = time.monotonic()
        with self._changed:
            while not self._released and turn.stop_order is None and turn.unjudged:
                behind = tokens_behind(min(turn.unjudged), length_tokens, generated_tokens)
                left_s = self._settings.hold_s - turn.held_s - (time.monotonic() - began_s)
                if behind < limit_tokens:
                    break
                if left_s <= 0:
                    self._health.count(
                        "actions.stop_generation.unheld", request_id=turn.request.request_id
                    )
                    break
                self._changed.wait(left_s)
        turn.held_s += time.monotonic() - began_s

    def _limit_tokens(self) -> int | None:
        rules, limit = self._rules(), self._limit
        if limit is None or limit.rules is not rules:
            actions = [rule.actions for rule in rules.rules]
            actions += [rule.actions for rule in rules.aggregations]
            asked = [
                stop.within_tokens
                for stop in (one.stop_generation for one in actions)
                if stop is not None and stop.mode == "enforce" and stop.within_tokens is not None
            ]
            limit = self._limit = _Limit(rules, min(asked, default=None))
        return limit.tokens


def tokens_behind(position: int, length_tokens: int, generated_tokens: int) -> int:
    """Tokens generated after the one at ``position``; a prompt's tokens are none of them."""
    return min(length_tokens - 1 - position, generated_tokens)


def _is_to_end(turn: Turn) -> bool:
    order = turn.stop_order
    return order is not None and order.outcome is None and not turn.finished_unix_ns
