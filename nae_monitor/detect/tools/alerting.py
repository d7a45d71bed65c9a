"""Which alerts a set of matches would have led to, and which of them suppression held back.

As live, the matches of one rule in one turn of a request are one alert, at the turn's end; here
that is when its last sample was captured. Where capture times are not known, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from nae_monitor.detect.calibration import Calibration
from nae_monitor.detect.engine import Judge
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.response import Suppression
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.suppression import Suppressor
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.records import Activation, Alert, Finding, FindingState, Request, Severity

Fate = Literal["sent", "repeat", "overflow", "untimed"]
Turn = tuple[str, int]  # request id, start in Unix ns


@dataclass(frozen=True, slots=True)
class Alerted:
    """One alert and its fate: sent, held back as a repeat or over the limit, or of unknown time.

    ``alert.held_back`` are the findings of earlier alerts that a sent one tells of.
    """

    alert: Alert
    fate: Fate


@dataclass(slots=True)
class _Fold:
    """The matches of one rule in one turn, as one alert shows them."""

    worst: Finding
    first_position: int
    last_position: int
    count: int = 0

    def add(self, finding: Finding) -> None:
        self.count += 1
        self.first_position = min(self.first_position, finding.position)
        self.last_position = max(self.last_position, finding.position)
        if finding.severity.rank > self.worst.severity.rank:
            self.worst = finding


@dataclass(slots=True)
class _Turn:
    request: Request
    last_unix_ns: int = 0
    folds: dict[str, _Fold] = field(default_factory=dict)  # by rule id


class Alerting:
    """Gathers matches, then tells the fate of each alert. Holds one entry a turn and alert."""

    def __init__(self) -> None:
        self._turns: dict[Turn, _Turn] = {}

    def saw(self, activation: Activation) -> None:
        """A sample was captured: its turn goes on at least that long."""
        turn = self._turn(activation.request)
        turn.last_unix_ns = max(turn.last_unix_ns, activation.captured_unix_ns)

    def add(self, request: Request, findings: Iterable[Finding]) -> None:
        """Findings on a request; only matches count."""
        for finding in findings:
            if finding.state is FindingState.MATCH:
                folds, place = self._turn(request).folds, finding.position
                fold = folds.setdefault(finding.rule_id, _Fold(finding, place, place))
                fold.add(finding)

    def hit(self, request: Request, rule: Rule, position: int, severity: Severity) -> None:
        """A match of which no more is known than its rule, place and severity after the gate."""
        names = rule.id, rule.name, rule.version, rule.title
        state = FindingState.MATCH
        self.add(request, [Finding(request.request_id, position, *names, severity, state)])

    def _turn(self, request: Request) -> _Turn:
        key = request.request_id, request.started_unix_ns
        return self._turns.setdefault(key, _Turn(request))

    def fates(self, policies: Mapping[str, Suppression]) -> list[Alerted]:
        """Every alert in the order of time, with its fate under ``policies`` by rule id."""
        suppressor = Suppressor(policies)
        return [_fate(alert, suppressor, policies) for alert in self._alerts()]

    def _alerts(self) -> list[Alert]:
        found = [
            _alert(turn, fold) for turn in self._turns.values() for fold in turn.folds.values()
        ]
        found.sort(
            key=lambda a: (
                a.time_unix_ns,
                a.request.request_id,
                a.request.started_unix_ns,
                -a.severity.rank,
                a.first_position,
                a.rule_id,
            )
        )
        return [replace(alert, sequence=number) for number, alert in enumerate(found)]


def _fate(alert: Alert, suppressor: Suppressor, policies: Mapping[str, Suppression]) -> Alerted:
    if alert.time_unix_ns <= 0 and alert.rule_id in policies:
        return Alerted(alert, "untimed")
    repeats = suppressor.counts["held_back_repeat"]
    for sent in suppressor.let_through([alert]):
        return Alerted(sent, "sent")
    is_repeat = suppressor.counts["held_back_repeat"] > repeats
    return Alerted(alert, "repeat" if is_repeat else "overflow")


def _alert(turn: _Turn, fold: _Fold) -> Alert:
    worst = fold.worst
    return Alert(
        alert_id="",
        request=turn.request,
        rule_id=worst.rule_id,
        rule_name=worst.rule_name,
        rule_version=worst.rule_version,
        title=worst.title,
        severity=worst.severity,
        risk_score=worst.risk_score,
        tags=worst.tags,
        first_position=fold.first_position,
        last_position=fold.last_position,
        count=fold.count,
        held_back=0,
        evidence=(),
        nla_id="",
        sequence=0,
        time_unix_ns=turn.last_unix_ns,
        routes=worst.routes,
    )


def alert_among(
    rule: Rule,
    sample: Sample,
    others: Iterable[Sample],
    encoder: Encoder | None = None,
    calibration: Calibration | None = None,
) -> Alerted | None:
    """The alert that a sample's turn leads to, among those of the samples it was recorded with.

    None where the rule matches nothing in that turn.

    Raises:
        ConfigurationError: the encoder fails on the rule's own exemplars.
    """
    own = RuleSet.of([rule])
    judge, alerting = Judge(own, encoder, calibration=calibration), Alerting()
    for other in others:
        activation = other.activation
        alerting.saw(activation)
        alerting.add(activation.request, judge.judge(activation, other.decoding, other.transcript))
    request = sample.activation.request
    turn = request.request_id, request.started_unix_ns
    fates = alerting.fates(own.suppressions())
    mine = (a for a in fates if _turn_of(a.alert) == turn)
    return next(mine, None)


def _turn_of(alert: Alert) -> Turn:
    return alert.request.request_id, alert.request.started_unix_ns
