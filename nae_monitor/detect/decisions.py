"""What rules' actions ask for, as decisions that whoever serves may carry out or only log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.response import Actions, SamplingScope
from nae_monitor.records import Finding, FindingState

MAX_REQUESTS = 10_000  # whose hits are remembered; the oldest is forgotten first


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing to do because of one finding."""

    kind: Literal["raise_sampling", "stop_generation", "capture"]
    rule_id: str
    rule_name: str
    request_id: str
    position: int  # tokens, from 0: the hit that led to it
    enforced: bool = True  # False: shadow, to be told as what would have been done
    rate: float | None = None  # raise_sampling: share of tokens
    scope: SamplingScope | None = None  # raise_sampling: whose tokens
    tokens: int | None = None  # raise_sampling: how many from here on
    within_tokens: int | None = None  # stop_generation: how many may follow the hit
    rule_version: str = ""


class Decider:
    """Turns findings into decisions; one stop a rule and generation. Not thread-safe."""

    def __init__(self) -> None:
        self._hits: OrderedDict[str, dict[str, set[int]]] = OrderedDict()  # by request and rule

    def ended(self, request_id: str) -> None:
        """The request's generation ended: hits of a further turn count anew."""
        self._hits.pop(request_id, None)

    def decide(self, rules: RuleSet, findings: Sequence[Finding]) -> tuple[Decision, ...]:
        """The decisions that matches lead to; undecided findings lead to none."""
        matches = [finding for finding in findings if finding.state is FindingState.MATCH]
        if not matches:
            return ()
        actions = {rule.id: rule.actions for rule in rules.rules}
        actions |= {rule.id: rule.actions for rule in rules.aggregations}
        return tuple(
            decision
            for finding in matches
            for decision in self._of(finding, actions.get(finding.rule_id, Actions()))
        )

    def _of(self, finding: Finding, actions: Actions) -> list[Decision]:
        found: list[Decision] = []
        place = (finding.rule_id, finding.rule_name, finding.request_id, finding.position)
        raised = actions.raise_sampling
        if raised is not None:
            more = (True, raised.rate, raised.scope, raised.tokens)
            found.append(Decision("raise_sampling", *place, *more))
        if actions.capture:
            found.append(Decision("capture", *place))
        stop = actions.stop_generation
        if stop is not None and self._is_enough(finding, stop.min_fidelity, stop.min_hits):
            enforced, limit = stop.mode == "enforce", stop.within_tokens
            found.append(Decision("stop_generation", *place, enforced, within_tokens=limit))
        return [replace(one, rule_version=finding.rule_version) for one in found]

    def _is_enough(self, finding: Finding, min_fidelity: float | None, min_hits: int) -> bool:
        """Whether this hit is the one that makes the rule's hits in the request enough."""
        if min_fidelity is not None and (finding.fve is None or finding.fve < min_fidelity):
            return False
        of_request = self._hits.setdefault(finding.request_id, {})
        hits = of_request.setdefault(finding.rule_id, set())
        self._hits.move_to_end(finding.request_id)
        while len(self._hits) > MAX_REQUESTS:
            self._hits.popitem(last=False)
        if len(hits) >= min_hits or finding.position in hits:
            return False
        hits.add(finding.position)
        return len(hits) == min_hits
