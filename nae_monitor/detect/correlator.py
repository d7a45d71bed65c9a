"""Aggregation rules beside the judge: findings of single decodings in, of windows out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from nae_monitor.detect.aggregation import AggregationRule, Answer, Sample
from nae_monitor.detect.correlation import Aggregation
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.suppression import request_fields
from nae_monitor.health import Health
from nae_monitor.records import Activation, Finding, FindingState, Request


class Correlator:
    """Feeds judged rows to the aggregation rules of a set. Not thread-safe.

    What it finds depends on the samples and their own places and times, not on the clock.

    Args:
        rules: the rule set in force; asked before each sample, so that it may be exchanged.
            Rules that say the same before and after keep their state.
        health: counts ``aggregation.matched``, ``aggregation.undecided`` and, by
            :class:`~nae_monitor.detect.correlation.Aggregation`, ``aggregation.repeated``,
            ``aggregation.late``, ``aggregation.no_time`` and what was let go.
    """

    def __init__(self, rules: Callable[[], RuleSet], health: Health | None = None) -> None:
        self._rules = rules
        self._health = health or Health()
        self._counts: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._set: RuleSet | None = None
        self._aggregations: list[Aggregation] = []
        self._adopt()

    @property
    def across_requests(self) -> bool:
        """Whether a rule groups samples of several requests, so that their order in time counts."""
        self._adopt()
        return any(not one.rule.within_request for one in self._aggregations)

    def sample(self, activation: Activation, findings: Sequence[Finding]) -> Sample:
        """A judged row as aggregation sees it."""
        by_state = {
            state: frozenset(f.rule_name for f in findings if f.state is state)
            for state in (FindingState.MATCH, FindingState.UNDECIDED)
        }
        request = activation.request
        return Sample(
            request_id=request.request_id,
            started_unix_ns=request.started_unix_ns,
            position=activation.position,
            captured_unix_ns=activation.captured_unix_ns,
            fields=request_fields(request),
            hits=by_state[FindingState.MATCH],
            unsure=by_state[FindingState.UNDECIDED],
        )

    def add(self, sample: Sample) -> tuple[Finding, ...]:
        """The findings that a sample leads to, ordered by rule id and position.

        An answer that a late sample changes in another request is told of the sample's own.
        """
        self._adopt()
        found: list[Finding] = []
        for one in self._aggregations:
            for firing in one.add(sample):
                anchor = firing.anchor
                if anchor.request_id != sample.request_id:
                    anchor = sample
                found.append(self._finding(one.rule, anchor.position, sample, firing.answer))
        self._tell()
        return tuple(sorted(found, key=lambda f: (f.rule_id, f.position)))

    def ended(self, request: Request) -> tuple[Finding, ...]:
        """What remains to be said at the end of a request's turn: windows too thin to judge."""
        self._adopt()
        fields = request_fields(request)
        turn = Sample(request.request_id, request.started_unix_ns, 0, 0, fields)
        found: list[Finding] = []
        for one in self._aggregations:
            position, answer = one.ended(request.request_id, request.started_unix_ns, fields)
            if answer.state is FindingState.UNDECIDED:
                found.append(self._finding(one.rule, position, turn, answer))
        return tuple(found)

    def _adopt(self) -> None:
        rules = self._rules()
        if rules is self._set:
            return
        before = {one.rule.id: one for one in self._aggregations}
        kept: list[Aggregation] = []
        for rule in rules.aggregations:
            old = before.get(rule.id)
            if not rule.enabled:
                continue
            same = old is not None and old.rule.canonical == rule.canonical
            kept.append(old if old is not None and same else Aggregation(rule, self._counts))
        self._set, self._aggregations = rules, kept

    def _finding(
        self, rule: AggregationRule, position: int, sample: Sample, answer: Answer
    ) -> Finding:
        matched = answer.state is FindingState.MATCH
        self._health.count("aggregation.matched" if matched else "aggregation.undecided")
        return Finding(
            request_id=sample.request_id,
            position=position,
            rule_id=rule.id,
            rule_name=rule.name,
            rule_version=rule.version,
            title=rule.title,
            severity=rule.severity,
            state=answer.state,
            undecided=() if matched else (answer.why,),
            tags=(*rule.tags, *rule.actions.tags),
            risk_score=rule.risk_score,
            routes=rule.actions.routes,
        )

    def _tell(self) -> None:
        for name, amount in (self._counts - self._told).items():
            self._health.count(f"aggregation.{name}", amount)
        self._told = Counter(self._counts)
