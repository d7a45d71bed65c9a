"""What the rules say of one decoding, as a backtest counts it: after their fidelity gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nae_monitor.detect.engine import Dropped, Judge
from nae_monitor.detect.evaluation import LOW_FIDELITY_TAG
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.records import Finding, FindingState, Severity

Gated = Literal["dropped", "downgraded", "tagged"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The rules that answered, by name. Rules that looked and found nothing are in none."""

    matched: Mapping[str, Severity] = field(default_factory=dict)  # as a finding would be shown
    undecided: frozenset[str] = frozenset()
    gated: Mapping[str, Gated] = field(default_factory=dict)  # matches that were no full ones

    @property
    def names(self) -> frozenset[str]:
        """The rules that matched."""
        return frozenset(self.matched)


def verdict_of(judge: Judge, rules: Mapping[str, Rule], sample: Sample) -> Verdict:
    """Judge one sample; ``rules`` are the judge's, by name."""
    matched: dict[str, Severity] = {}
    gated: dict[str, Gated] = {}
    undecided: set[str] = set()
    for one in judge.weigh(sample.activation, sample.decoding, sample.transcript):
        is_match = one.state is FindingState.MATCH
        if isinstance(one, Dropped):
            if is_match:
                gated[one.rule_name] = "dropped"
        elif is_match:
            matched[one.rule_name] = one.severity
            if how := _gated(rules[one.rule_name], one):
                gated[one.rule_name] = how
        else:
            undecided.add(one.rule_name)
    return Verdict(matched, frozenset(undecided), gated)


def _gated(rule: Rule, finding: Finding) -> Gated | None:
    if finding.severity is not rule.severity:
        return "downgraded"
    is_tagged = LOW_FIDELITY_TAG in finding.tags and LOW_FIDELITY_TAG not in rule.tags
    return "tagged" if is_tagged else None
