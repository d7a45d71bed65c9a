"""The explanation of an aggregation rule, and what suppression did, as text and JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from nae_monitor.cli.terminal import output, printable

if TYPE_CHECKING:
    from nae_monitor.detect import AggregationRule
    from nae_monitor.detect.response import Suppression
    from nae_monitor.detect.tools.alerting import Alerted
    from nae_monitor.detect.tools.explain_windows import (
        AggregationExplanation,
        WindowHit,
        WindowReport,
    )

OUTCOMES = {"match": "bold red", "no_match": "green", "undecided": "yellow"}
SHOWN_HITS = 12
UNITS_NS = (("d", 86_400_000_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000))


def print_windows(found: AggregationExplanation) -> None:
    """The verdict, what the rule asks of a window, the nearest window, and the alerts."""
    from rich.text import Text

    console = output()
    word = found.outcome.value
    verdict = Text(word.replace("_", " ").upper(), style=OUTCOMES[word])
    head = Text(f"{found.rule.name} (version {found.rule.version}): ").append_text(verdict)
    if found.held_by:
        head.append(f"; held back by {found.held_by}", style="default")
    console.print(head)
    console.print(f"asks: {asked(found.rule)}", soft_wrap=True)
    hits = ", ".join(f"{name} {found.hits[name]}" for name in _counted(found.rule))
    console.print(f"{found.samples} samples; hits: {hits}", soft_wrap=True)
    states = ", ".join(f"{n} {state.value}" for state, n in sorted(found.windows.items()))
    console.print(f"windows: {states or 'none, for no sample hits a rule that ends one'}")
    if found.nearest is not None:
        _print_window(found.rule, found.nearest)
    if found.why:
        console.print(printable(f"undecided: {found.why}"), soft_wrap=True)
    if line := fates_line(found.rule.suppress, found.alerts):
        console.print(line, soft_wrap=True)


def asked(rule: AggregationRule) -> str:
    """What the rule asks of a window, in a line."""
    size = rule.window.size
    window = duration(size) if rule.window.unit == "time" else f"{size} {rule.window.unit}"
    bounds = " and ".join(f"{name} {bound:g}" for name, bound in rule.thresholds)
    parts = [f"{rule.type} of {', '.join(rule.rules)}", bounds, f"in {window}"]
    parts.append(f"by {', '.join(rule.group_by)}")
    if rule.min_samples > 1:
        parts.append(f"with {rule.min_samples} samples or more")
    if rule.absent:
        parts.append(f"without {', '.join(rule.absent)}")
    return " ".join(part for part in parts if part)


def _print_window(rule: AggregationRule, report: WindowReport) -> None:
    console = output()
    anchor = report.anchor
    place = f"{anchor.request_id} token {anchor.position}"
    group = ", ".join(value for value in report.group if value != anchor.request_id)
    head = f"nearest window: ends at {place}{f' ({group})' if group else ''}, "
    head += f"{report.samples} samples, {_figure(rule, report)}: {report.answer.state.value}"
    console.print(printable(head), soft_wrap=True)
    if report.answer.why:
        console.print(printable(f"  {report.answer.why}"), soft_wrap=True)
    for hit in report.hits[-SHOWN_HITS:]:
        console.print(printable(f"  {_hit(hit)}"), soft_wrap=True)
    if len(report.hits) > SHOWN_HITS:
        console.print(f"  and {len(report.hits) - SHOWN_HITS} before them")


def _figure(rule: AggregationRule, report: WindowReport) -> str:
    share = report.samples if rule.type == "event_rate" else 1
    low, high = report.low / share, report.high / share
    shown = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    if rule.type.startswith("temporal"):
        return f"{shown} of {len(rule.rules)} rules"
    return {"event_rate": "rate", "value_count": "values"}.get(rule.type, "hits") + f" {shown}"


def _hit(hit: WindowHit) -> str:
    note = " (must not occur)" if hit.barred else ""
    return f"{hit.request_id} token {hit.position}: {hit.rule_name} {hit.state.value}{note}"


def _counted(rule: AggregationRule) -> list[str]:
    return list(dict.fromkeys((*rule.rules, *rule.absent)))


def policy_line(policy: Suppression) -> str:
    """What a rule's ``suppress`` says."""
    parts = [f"by {', '.join(policy.group_by)}"]
    if policy.quiet_ns:
        parts.append(f"repeats for {duration(policy.quiet_ns)}")
    if policy.max_alerts is not None:
        parts.append(f"at most {policy.max_alerts} in {duration(policy.period_ns)}")
    return "suppress: " + ", ".join(parts)


def fate_line(policy: Suppression | None, alerted: Alerted | None) -> str:
    """What became of one request's alert; "" where there is nothing to say."""
    if policy is None:
        return ""
    if alerted is None:
        return policy_line(policy)
    words = {
        "sent": "goes out",
        "repeat": "held back as a repeat",
        "overflow": "held back over the limit",
        "untimed": "not known, for no capture times are",
    }
    told = alerted.alert.held_back
    more = f", telling of {told} findings held back before it" if told else ""
    return f"{policy_line(policy)}; the alert: {words[alerted.fate]}{more}"


def fates_line(policy: Suppression | None, alerts: tuple[Alerted, ...]) -> str:
    """How many alerts went out and were held back; "" without any."""
    if not alerts:
        return "" if policy is None else policy_line(policy)
    fates = Counter(one.fate for one in alerts)
    if policy is None:
        return f"alerts: {len(alerts)} go out"
    held_back = fates["repeat"] + fates["overflow"]
    untimed = f", {fates['untimed']} of unknown time" if fates["untimed"] else ""
    return f"{policy_line(policy)}; alerts: {fates['sent']} go out, {held_back} held back{untimed}"


def duration(ns: int) -> str:
    """Nanoseconds as a rule writes them, such as 30m."""
    for unit, size in UNITS_NS:
        if ns and ns % size == 0:
            return f"{ns // size}{unit}"
    return f"{ns / 1e9:g}s"


def windows_as_json(found: AggregationExplanation) -> dict[str, Any]:
    """Everything the text shows."""
    return {
        "rule": found.rule.name,
        "version": found.rule.version,
        "kind": "aggregation",
        "outcome": found.outcome.value,
        "held_by": found.held_by,
        "why": found.why,
        "asks": asked(found.rule),
        "samples": found.samples,
        "hits": {name: found.hits[name] for name in _counted(found.rule)},
        "windows": {state.value: n for state, n in sorted(found.windows.items())},
        "nearest": None if found.nearest is None else _window_as_json(found.nearest),
        "alerts": dict(sorted(Counter(one.fate for one in found.alerts).items())),
    }


def _window_as_json(report: WindowReport) -> dict[str, Any]:
    return {
        "group": list(report.group),
        "request_id": report.anchor.request_id,
        "position": report.anchor.position,
        "samples": report.samples,
        "count": [report.low, report.high],
        "state": report.answer.state.value,
        "why": report.answer.why,
        "hits": [
            {
                "rule": hit.rule_name,
                "request_id": hit.request_id,
                "position": hit.position,
                "state": hit.state.value,
                "barred": hit.barred,
            }
            for hit in report.hits
        ],
    }
