"""Why a rule matched one decoding, or why it did not."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from nae_monitor.detect.calibration import Calibration
from nae_monitor.detect.conditions import And, Count, Expression, Name, Not, Or, evaluate
from nae_monitor.detect.engine import semantic_answerer
from nae_monitor.detect.evaluation import Answer, rate
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.tools.corpus import Sample
from nae_monitor.detect.tools.nearest import Nearest, nearest_of
from nae_monitor.detect.tools.trace import all_answers
from nae_monitor.detect.views import Subject, Views
from nae_monitor.health import Health
from nae_monitor.records import Severity, Span


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the condition and its answer (None: unknown)."""

    text: str
    answer: bool | None
    parts: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """What one selection looked for and found. ``used``: the condition or an exception asks it."""

    name: str
    field: str
    quotes: str
    kind: str
    answer: bool | None
    why: str  # where unknown
    spans: tuple[Span, ...]
    nearest: Nearest | None  # fuzzy and semantic: the best score, whether or not it was enough


@dataclass(frozen=True, slots=True)
class ExceptionReport:
    """One exception: ``expired`` ones have no effect whatever their answer."""

    name: str
    reason: str
    expired: bool
    answer: bool | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A rule's whole answer. ``held_by`` says what kept a true condition from a finding."""

    rule: Rule
    condition: Step
    selections: tuple[SelectionReport, ...]
    exceptions: tuple[ExceptionReport, ...]
    outcome: str  # match | no_match | undecided
    held_by: str
    severity: Severity | None  # of the finding, after the gate
    metric: str
    figure: float | None
    minimum: float | None


def explain(
    rule: Rule,
    sample: Sample,
    encoder: Encoder | None = None,
    day: datetime.date | None = None,
    calibration: Calibration | None = None,
) -> Explanation:
    """Ask every selection of ``rule``, without the engine's short cuts.

    Args:
        rule: the rule.
        sample: the decoding and what is known around it.
        encoder: for semantic selections; without one they are unknown.
        day: decides which exceptions have expired; None: none has.
        calibration: for percentiles; without one they are unknown.

    Raises:
        ConfigurationError: the encoder fails on the rule's own exemplars.
    """
    percentile = None if calibration is None else calibration.percentile(sample.decoding)
    subject = Subject.of(sample.activation, sample.decoding, sample.transcript, percentile)
    views = Views(subject)
    answers = all_answers(rule, views, semantic_answerer([rule], encoder, Health()))
    truths = {name: answer.matched for name, answer in answers.items()}
    exceptions = tuple(
        ExceptionReport(e.name, e.reason, not e.applies_on(day), evaluate(e.when, truths))
        for e in rule.exceptions
    )
    truth = evaluate(rule.condition, truths)
    metric = rule.fidelity.metric if rule.fidelity else "fve"
    figure = subject.figure(metric)
    outcome, held_by = _outcome(rule, sample, truth, exceptions, figure)
    return Explanation(
        rule=rule,
        condition=_step(rule.condition, truths),
        selections=tuple(
            _report(rule, name, answer, views, encoder) for name, answer in answers.items()
        ),
        exceptions=exceptions,
        outcome=outcome,
        held_by=held_by,
        severity=rate(rule, figure).severity if outcome == "match" else None,
        metric=metric,
        figure=figure,
        minimum=rule.fidelity.minimum if rule.fidelity else None,
    )


def _outcome(
    rule: Rule,
    sample: Sample,
    truth: bool | None,
    exceptions: tuple[ExceptionReport, ...],
    figure: float | None,
) -> tuple[str, str]:
    if not rule.enabled:
        return "no_match", "the rule is disabled"
    if not rule.scope.admits(sample.activation):
        return "no_match", "scope: the rule does not look at this token"
    if truth is False:
        return "no_match", ""
    active = [e for e in exceptions if not e.expired]
    eaten = [e.name for e in active if e.answer is True]
    if eaten:
        return "no_match", f"exception {eaten[0]}"
    if rate(rule, figure).dropped:
        low = "is not known" if figure is None else f"{figure:g} is under {rule.fidelity.minimum:g}"  # type: ignore[union-attr]
        return "no_match", f"fidelity: {rule.fidelity.metric} {low}"  # type: ignore[union-attr]
    if truth is None or any(e.answer is None for e in active):
        return "undecided", ""
    return "match", ""


def _step(expression: Expression, truths: Mapping[str, bool | None]) -> Step:
    answer = evaluate(expression, truths)
    match expression:
        case Name(name):
            return Step(name, answer)
        case Not(operand):
            return Step("not", answer, (_step(operand, truths),))
        case And(operands):
            return Step("and", answer, tuple(_step(o, truths) for o in operands))
        case Or(operands):
            return Step("or", answer, tuple(_step(o, truths) for o in operands))
        case Count(needed, names):
            true = sum(truths.get(name) is True for name in names)
            text = f"{needed} of {len(names)} ({true} true)"
            return Step(text, answer, tuple(Step(n, truths.get(n)) for n in names))


def _report(
    rule: Rule, name: str, answer: Answer, views: Views, encoder: Encoder | None
) -> SelectionReport:
    selection = rule.selections[name]
    kind = type(selection.matcher).__name__.removesuffix("Matcher").lower()
    return SelectionReport(
        name,
        selection.field,
        selection.quotes,
        kind,
        answer.matched,
        answer.why,
        answer.spans,
        nearest_of(selection, views, encoder),
    )
