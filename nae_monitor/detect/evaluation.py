"""One rule against one subject: cheap selections first, and no more than the answer needs."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nae_monitor.detect.conditions import (
    And,
    Expression,
    Not,
    Or,
    evaluate,
    names_in,
    supporting_names,
)
from nae_monitor.detect.figures import ActivationMatcher, FigureMatcher, ValueMatcher
from nae_monitor.detect.matchers import RegexMatcher
from nae_monitor.detect.matching import TextAnswerer, ask_matcher
from nae_monitor.detect.schema import RISK_BANDS, Fidelity, LowFidelity, Rule, Selection
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.detect.views import Hit, Missing, Subject, View, Views
from nae_monitor.records import FindingState, Severity, Span

MAX_SPANS = 32  # of one finding
ENOUGH = math.inf  # support that was not asked for
LOW_FIDELITY_TAG = "nae.low-fidelity"

# Answers a semantic selection: its hits, and why it is unknown ("" where it is not).
SemanticAnswerer = Callable[[Rule, Selection, View], tuple[list[Hit], str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one selection says. ``matched`` is None where its input was missing (``why``)."""

    matched: bool | None
    spans: tuple[Span, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule says of one subject, before its fidelity gate."""

    state: FindingState
    spans: tuple[Span, ...] = ()
    undecided: tuple[str, ...] = ()


def evaluate_rule(
    rule: Rule,
    views: Views,
    semantic: SemanticAnswerer,
    day: datetime.date | None,
    texts: TextAnswerer = ask_matcher,
) -> Outcome:
    """Ask the rule's selections until its condition is decided.

    A condition already false stops there. One already true still asks the text matchers, whose
    spans an alert shows. The encoder is asked last, and only for selections that the verdict
    still hangs on. ``day`` decides which exceptions apply; ``texts`` answers text selections.
    """
    expression = _with_exceptions(rule, day)
    order = {name: index for index, name in enumerate(rule.selections)}
    answers: dict[str, Answer] = {}
    truth: bool | None = None
    for name in sorted(set(names_in(expression)), key=lambda n: (_cost(rule, n), order[n])):
        if truth is False:
            break
        if _cost(rule, name) >= SemanticMatcher.cost and name not in _open(expression, answers):
            continue
        answers[name] = ask_selection(rule, rule.selections[name], views, semantic, texts)
        truth = _truth(expression, answers)
    if truth is False:
        return Outcome(FindingState.NO_MATCH)
    return _outcome(expression, truth, answers)


def _cost(rule: Rule, name: str) -> int:
    return rule.selections[name].matcher.cost


def _open(expression: Expression, answers: Mapping[str, Answer]) -> frozenset[str]:
    """The selections not asked yet on which the truth of ``expression`` still hangs."""
    if _truth(expression, answers) is not None:
        return frozenset()
    match expression:
        case And(operands) | Or(operands):
            return frozenset().union(*(_open(operand, answers) for operand in operands))
        case Not(operand):
            return _open(operand, answers)
    return frozenset(names_in(expression)) - answers.keys()


def _truth(expression: Expression, answers: Mapping[str, Answer]) -> bool | None:
    return evaluate(expression, {name: answer.matched for name, answer in answers.items()})


def _with_exceptions(rule: Rule, day: datetime.date | None) -> Expression:
    active = [Not(other.when) for other in rule.exceptions if other.applies_on(day)]
    return And((rule.condition, *active)) if active else rule.condition


def ask_selection(
    rule: Rule,
    selection: Selection,
    views: Views,
    semantic: SemanticAnswerer,
    texts: TextAnswerer = ask_matcher,
) -> Answer:
    """What one selection says; unknown where its input is missing."""
    if isinstance(selection.matcher, ValueMatcher | ActivationMatcher):
        return _figure_answer(selection, selection.matcher, views.subject)
    view = views.view(selection.field, selection.quotes, selection.case)
    if isinstance(view, Missing):
        return Answer(None, why=view.why)
    is_semantic = isinstance(selection.matcher, SemanticMatcher)
    hits, why = (semantic if is_semantic else texts)(rule, selection, view)
    if hits:
        return Answer(True, tuple(view.span(selection.name, hit) for hit in hits))
    if not why and (view.truncated or _is_too_long(selection, view)):
        why = f"the {view.field} is longer than is searched"
    return Answer(None, why=why) if why else Answer(False)


def _is_too_long(selection: Selection, view: View) -> bool:
    """Whether a pattern is so large that it was not tried on all of the text."""
    matcher = selection.matcher
    return isinstance(matcher, RegexMatcher) and len(view.text) > matcher.readable_chars


def _figure_answer(selection: Selection, matcher: FigureMatcher, subject: Subject) -> Answer:
    figure: float | Missing | None = subject.given.get(selection.name)
    if figure is None:
        figure = matcher.figure(selection.field, subject)
    if isinstance(figure, Missing):
        return Answer(None, why=figure.why)
    if figure is None or not matcher.admits(figure):
        return Answer(False)
    return Answer(True, (Span(selection.name, selection.field, 0, 0, f"{figure:g}", figure),))


def _outcome(expression: Expression, truth: bool | None, answers: dict[str, Answer]) -> Outcome:
    supporting = supporting_names(expression)
    spans = sorted(
        (span for name in supporting if name in answers for span in answers[name].spans),
        key=lambda span: (span.selection, span.start, span.end),
    )
    if truth:
        return Outcome(FindingState.MATCH, tuple(spans[:MAX_SPANS]))
    unknown = [f"{n}: {a.why}" for n, a in answers.items() if a.matched is None]
    return Outcome(FindingState.UNDECIDED, tuple(spans[:MAX_SPANS]), tuple(sorted(unknown)))


@dataclass(frozen=True, slots=True)
class Rating:
    """A finding's weight after the fidelity gate; ``dropped`` names the counter, "" if kept."""

    severity: Severity
    risk_score: int | None
    tags: tuple[str, ...]
    dropped: str = ""


def rate(
    rule: Rule,
    figure: float | None,
    support: float | None = ENOUGH,
    unsupported: float | None = 0.0,
) -> Rating:
    """Apply the rule's fidelity gate; of the things it finds wanting, the gravest counts.

    Args:
        rule: whose gate.
        figure: of the gate's metric; None: unscored.
        support: of the words that matched; None: it could not be measured.
        unsupported: P(the decode's theme is not true); None: not known.
    """
    full = Rating(rule.severity, rule.risk_score, rule.tags)
    gate = rule.fidelity
    if gate is None:
        return full
    asked = [(figure, gate.minimum, "low_fidelity")]
    if gate.min_support is not None:
        asked.append((support, gate.min_support, "low_support"))
    if gate.max_unsupported is not None:
        supported = None if unsupported is None else -unsupported
        asked.append((supported, -gate.max_unsupported, "unsupported"))
    found = [_wanting(gate, *one) for one in asked]
    action, counter = min(found, key=lambda one: _GRAVEST_FIRST.index(one[0]))
    if action == "drop":
        return replace(full, dropped=counter)
    if action == "tag":
        return replace(full, tags=(*rule.tags, LOW_FIDELITY_TAG))
    return _downgraded(full) if action == "downgrade" else full


_GRAVEST_FIRST: tuple[LowFidelity, ...] = ("drop", "downgrade", "tag", "pass")


def _wanting(
    gate: Fidelity, figure: float | None, minimum: float, low: str
) -> tuple[LowFidelity, str]:
    """What becomes of a match with this figure, and the counter of it where it is dropped."""
    if figure is None:
        return gate.unscored, "rules.dropped_unscored"
    if not figure >= minimum:  # NaN too
        return gate.below, f"rules.dropped_{low}"
    return "pass", ""


def _downgraded(rating: Rating) -> Rating:
    lower = list(Severity)[max(rating.severity.rank - 1, 0)]
    score = rating.risk_score
    capped = None if score is None else min(score, RISK_BANDS[lower][1])
    return replace(rating, severity=lower, risk_score=capped)
