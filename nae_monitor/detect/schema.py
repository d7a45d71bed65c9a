"""What a rule says, as frozen records; read from YAML by :mod:`nae_monitor.detect.rule_reader`."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal

from nae_monitor.detect.conditions import Expression
from nae_monitor.detect.directions import Direction
from nae_monitor.detect.figures import ActivationMatcher, FigureMatcher
from nae_monitor.detect.matchers import TextMatcher
from nae_monitor.detect.response import Actions, Suppression
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.detect.text import Quotes
from nae_monitor.records import Activation, Phase, Severity

SCHEMA_VERSION = 1
Status = Literal["experimental", "test", "stable", "deprecated", "unsupported"]
Enforcement = Literal["shadow", "enforce"]
RelationType = Literal["derived", "obsolete", "merged", "renamed", "similar"]
Metric = Literal["fve", "cosine", "percentile"]
LowFidelity = Literal["drop", "downgrade", "tag", "pass"]

RISK_BANDS: Mapping[Severity, tuple[int, int]] = MappingProxyType(
    {
        Severity.INFORMATIONAL: (0, 10),
        Severity.LOW: (11, 21),
        Severity.MEDIUM: (22, 47),
        Severity.HIGH: (48, 73),
        Severity.CRITICAL: (74, 100),
    }
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which activations a rule looks at; an empty tuple means all."""

    phases: tuple[Phase, ...] = ()
    min_token_index: int = 0  # position, tokens from 0
    max_norm: float | None = None  # Euclidean norm of the activation
    models: tuple[str, ...] = ()  # patterns with *
    layers: tuple[int, ...] = ()

    def admits(self, activation: Activation) -> bool:
        """Whether the rule looks at this activation at all."""
        return (
            (not self.phases or activation.phase in self.phases)
            and activation.position >= self.min_token_index
            and (not self.layers or activation.layer in self.layers)
            and (not self.models or _matches_any(activation.request.model, self.models))
            and (self.max_norm is None or activation.norm <= self.max_norm)
        )


def _matches_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Selection:
    """One named look at one field."""

    name: str
    field: str
    quotes: Quotes
    case: bool
    matcher: TextMatcher | SemanticMatcher | FigureMatcher


@dataclass(frozen=True, slots=True)
class RuleException:
    """A known harmless case: where ``when`` holds, the rule does not match."""

    name: str
    when: Expression
    reason: str
    expires: datetime.date | None  # last day it applies, UTC

    def applies_on(self, day: datetime.date | None) -> bool:
        """Whether the exception is in force; an unknown day counts as in force."""
        return self.expires is None or day is None or day <= self.expires


@dataclass(frozen=True, slots=True)
class Related:
    """Another rule this one comes from or replaces (as Sigma's ``related``)."""

    id: str  # UUID, lower case
    type: RelationType


@dataclass(frozen=True, slots=True)
class RequiredNla:
    """The NLA a rule was written for; None: any."""

    base_model: str | None  # name of the target model
    layer: int | None

    def admits(self, base_model: str, layer: int) -> bool:
        """Whether an NLA of this model and layer will do."""
        wanted = self.base_model
        same_model = wanted is None or wanted.casefold() == base_model.casefold()
        return same_model and self.layer in (None, layer)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What becomes of a match on a decode that does not reconstruct its activation.

    The gate takes garbage out; it says nothing about whether the text is true.
    """

    metric: Metric
    minimum: float  # of the metric: FVE, cosine, or percentile 0..100
    below: LowFidelity
    unscored: LowFidelity
    min_support: float | None = None  # a cosine, see nae_monitor.detect.support; None: not asked
    max_unsupported: float | None = None  # P(unsupported) of the decode; None: not asked


@dataclass(frozen=True, slots=True)
class InlineTest:
    """A rule's own example and what must come of it."""

    name: str
    explanation: str
    prompt: str
    output: str
    token: str
    request: Mapping[str, str]
    fidelity: float | None  # the gate's metric, unless that is a percentile; None: unscored
    scores: Mapping[str, float]  # semantic or numeric selection -> what it is to answer with
    expect_match: bool
    expect_severity: Severity | None
    expect_routes: frozenset[str] | None = None  # of the alert; None: not asked
    expect_suppressed: int | None = None  # of alerts at ``times_s``, how many are held back
    percentile: float | None = 100.0  # None: unknown
    gives_percentile: bool = False  # else a calibration set, where there is one, tells it
    support: float | None = math.inf  # None: it could not be measured
    unsupported: float | None = 0.0  # None: not known
    times_s: tuple[float, ...] = (0.0,)  # when the example happens, in one request


@dataclass(frozen=True, eq=False, slots=True)
class Rule:
    """A rule ready to be judged with."""

    id: str  # UUID, lower case
    name: str
    title: str
    version: str
    severity: Severity
    selections: Mapping[str, Selection]
    condition: Expression
    file: str
    canonical: Mapping[str, Any]  # the document as read; what the fingerprint covers
    status: Status = "experimental"
    risk_score: int | None = None
    description: str = ""
    author: str = ""
    date: datetime.date | None = None
    references: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    falsepositives: tuple[str, ...] = ()
    guide: str = ""
    enabled: bool = True
    enforcement: Enforcement = "shadow"
    scope: Scope = field(default_factory=Scope)
    exceptions: tuple[RuleException, ...] = ()
    fidelity: Fidelity | None = None
    related: tuple[Related, ...] = ()
    required_nla: RequiredNla | None = None
    suppress: Suppression | None = None
    actions: Actions = field(default_factory=Actions)
    tests: tuple[InlineTest, ...] = ()

    def semantic_selections(self) -> list[tuple[str, SemanticMatcher]]:
        """Name and matcher of each selection that needs a sentence encoder."""
        found = ((name, selection.matcher) for name, selection in self.selections.items())
        return [(name, matcher) for name, matcher in found if isinstance(matcher, SemanticMatcher)]

    def directions(self) -> list[Direction]:
        """The direction of each selection over activations."""
        matchers = (selection.matcher for selection in self.selections.values())
        return [m.direction for m in matchers if isinstance(m, ActivationMatcher)]
