"""Checks of a document as a whole: gates, counts, tests, exceptions."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from nae_monitor.detect.lint.diagnostics import Diagnostic, diagnose
from nae_monitor.detect.lint.subject import LintSubject
from nae_monitor.records import Phase


def check_gate(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM401: cosines of ordinary decodes differ from pair to pair."""
    if subject.get("fidelity", "metric") == "cosine":
        message = "a cosine that is good for one NLA pair is bad for another"
        yield diagnose("NM401", subject.mark("fidelity", "metric"), message, "use `metric: fve`")


def check_count(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM501: more hits asked for than the window holds decoded samples."""
    share = subject.options.sampled_share
    tokens = subject.get("aggregation", "window", "tokens")
    if share is None or not isinstance(tokens, int):
        return
    samples = tokens * share
    for path in (("condition", "gte"), ("min_samples",)):
        needed = subject.get("aggregation", *path)
        if isinstance(needed, int) and needed > samples:
            where = subject.mark("aggregation", *path)
            message = (
                f"{needed} in {tokens} tokens can never come about: "
                f"{share:.3g} of the tokens are decoded, {samples:.3g} a window"
            )
            yield diagnose("NM501", where, message, "widen the window or sample more")


def check_phase(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM503: capture tells prompts from completions, and never sets the phase of a tool's text."""
    phases = subject.get("scope", "phase")
    if not isinstance(phases, list) or Phase.TOOL.value not in phases:
        return
    path = ("scope", "phase", phases.index(Phase.TOOL.value))
    only = all(phase == Phase.TOOL.value for phase in phases)
    effect = "the rule can never match" if only else "the rule matches in the other phases only"
    message = f"no activation is captured in the phase 'tool' yet: {effect}"
    mend = "use `prompt`: what a tool returns is read as part of the next prompt"
    yield diagnose("NM503", subject.mark(*path), message, mend)


def check_tests(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM601: a rule that is only tested on one side says nothing about the other."""
    if not any(subject.get(kind) for kind in ("detection", "aggregation")):
        return
    expected = set()
    for test in subject.get("tests") or ():
        value = test.get("expect") if isinstance(test, dict) else None
        matched = value.get("match", True) if isinstance(value, dict) else value == "match"
        expected.add(bool(matched))
    where = subject.mark("tests")
    if True not in expected:
        yield diagnose("NM601", where, "no test expects a match", "add one with `expect: match`")
    if False not in expected:
        message = "no test expects no match"
        yield diagnose("NM601", where, message, "add one with `expect: no_match`")


def check_expiry(subject: LintSubject) -> Iterator[Diagnostic]:
    """NM602: an exception past its last day has no effect any more."""
    for index, exception in enumerate(subject.get("exceptions") or ()):
        expires = exception.get("expires") if isinstance(exception, dict) else None
        if isinstance(expires, str):
            try:
                expires = datetime.date.fromisoformat(expires)
            except ValueError:
                continue
        if type(expires) is datetime.date and expires < subject.options.today:
            where = subject.mark("exceptions", index, "expires")
            message = f"exception {exception.get('name')!r} expired on {expires}"
            yield diagnose("NM602", where, message, "renew it with a reason, or remove it")
