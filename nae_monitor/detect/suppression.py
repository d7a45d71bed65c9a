"""Holds repeats of alerts back and counts them, so that no finding is ever lost from sight.

Time is the alerts' own (``time_unix_ns``), never the clock: the same alerts in the same order are
let through or held back alike whenever that is asked. What was held back, in findings, is told by
the next alert of the same group, or of the same rule where a limit held it back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nae_monitor.detect.response import Suppression
from nae_monitor.records import Alert, Request

MAX_GROUPS = 10_000  # of one rule; the one that has waited longest goes first


@dataclass(slots=True)
class _Rule:
    """What one rule has sent and held back."""

    quiet_until: OrderedDict[tuple[str, ...], int] = field(default_factory=OrderedDict)
    held: Counter[tuple[str, ...]] = field(default_factory=Counter)  # findings by group
    over: int = 0  # findings held back by the limit, told by the rule's next alert
    counted: int = 0  # findings held back by the limit, told by counters only
    sent: deque[int] = field(default_factory=deque)  # times inside the period


class Suppressor:
    """Lets alerts through or holds them back by their rules' ``suppress``. Not thread-safe.

    Args:
        policies: suppression by rule id; a rule without one is never held back.
    """

    def __init__(
        self, policies: Mapping[str, Suppression], *, max_groups: int = MAX_GROUPS
    ) -> None:
        self._policies = policies
        self._max_groups = max_groups
        self._rules: dict[str, _Rule] = {}
        self.counts: Counter[str] = Counter()

    def use(self, policies: Mapping[str, Suppression]) -> None:
        """Go on under other policies; what was held back stays counted."""
        self._policies = policies

    def let_through(self, alerts: Iterable[Alert]) -> list[Alert]:
        """The alerts that go out, each with the findings held back before it."""
        passed = (self._one(alert) for alert in alerts)
        return [alert for alert in passed if alert is not None]

    def pending(self) -> dict[str, int]:
        """Findings held back and not told by any alert yet, by rule id."""
        totals = {
            rule_id: sum(state.held.values()) + state.over + state.counted
            for rule_id, state in self._rules.items()
        }
        return {rule_id: total for rule_id, total in sorted(totals.items()) if total}

    def _one(self, alert: Alert) -> Alert | None:
        policy = self._policies.get(alert.rule_id)
        state = self._rules.get(alert.rule_id)
        if policy is None and state is None:
            return alert
        state = self._rules.setdefault(alert.rule_id, _Rule())
        findings = alert.count + alert.held_back
        group = group_of(policy, alert.request) if policy is not None else ()
        now_ns = alert.time_unix_ns
        if policy is not None:
            if now_ns < state.quiet_until.get(group, now_ns):
                state.held[group] += findings
                self._count("repeat", findings)
                return None
            if self._is_over(policy, state, now_ns):
                if policy.overflow == "summarize":
                    state.over += findings
                else:
                    state.counted += findings
                self._count("overflow", findings)
                return None
            self._remember(policy, state, group, now_ns)
        told = state.held.pop(group, 0) + state.over
        state.over = 0
        return replace(alert, held_back=alert.held_back + told) if told else alert

    def _is_over(self, policy: Suppression, state: _Rule, now_ns: int) -> bool:
        if policy.max_alerts is None:
            return False
        while state.sent and state.sent[0] <= now_ns - policy.period_ns:
            state.sent.popleft()
        return len(state.sent) >= policy.max_alerts

    def _remember(
        self, policy: Suppression, state: _Rule, group: tuple[str, ...], now_ns: int
    ) -> None:
        if policy.max_alerts is not None:
            state.sent.append(now_ns)
        if not policy.quiet_ns:
            return
        state.quiet_until[group] = now_ns + policy.quiet_ns
        state.quiet_until.move_to_end(group)
        while len(state.quiet_until) > self._max_groups:
            oldest, _ = state.quiet_until.popitem(last=False)
            # Its count outlives the group: the rule's next alert tells it.
            state.over += state.held.pop(oldest, 0)
            self.counts["groups_let_go"] += 1

    def _count(self, why: str, findings: int) -> None:
        self.counts[f"held_back_{why}"] += 1
        self.counts["findings_held_back"] += findings


def group_of(policy: Suppression, request: Request) -> tuple[str, ...]:
    """The group of an alert; a request that lacks a key is a group of its own."""
    fields = request_fields(request)
    values = [fields.get(name, "") for name in policy.group_by]
    return ("known", *values) if all(values) else ("alone", request.request_id)


def request_fields(request: Request) -> dict[str, str]:
    """Every ``request.KEY`` of a request; missing ones are empty."""
    named = {
        "request_id": request.request_id,
        "group_id": request.group_id,
        "model": request.model,
        "session_id": request.session_id or "",
        "tenant": request.tenant or "",
    }
    return {**request.attributes, **named}
