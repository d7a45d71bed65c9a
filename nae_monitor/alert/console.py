"""Alerts on the operator's terminal, one readable block each."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from nae_monitor.alert.ocsf import finite
from nae_monitor.alert.privacy import HASH_PREFIX, ContentPolicy, RedactedAlert
from nae_monitor.alert.threaded import RetryingSink
from nae_monitor.alert.wording import matched_words, unsupported_said
from nae_monitor.health import Health
from nae_monitor.records import Alert, Evidence, Severity

QUEUE_EVENTS = 1000
HASH_DIGITS = 12
SHOWN_CHARS = 400
MATCHES = 5
_STYLE = {
    Severity.INFORMATIONAL: "cyan",
    Severity.LOW: "green",
    Severity.MEDIUM: "yellow",
    Severity.HIGH: "red",
    Severity.CRITICAL: "bold white on red",
}


class ConsoleSink(RetryingSink):
    """Prints to standard error unless given another console. Content only under ``full``."""

    def __init__(
        self,
        policy: ContentPolicy,
        health: Health,
        *,
        console: Console | None = None,
        name: str = "console",
    ) -> None:
        self._console = console or Console(stderr=True)
        super().__init__(name, policy, health, QUEUE_EVENTS)

    def _deliver(self, alerts: Sequence[RedactedAlert]) -> int:
        for done, alert in enumerate(alerts):
            try:
                self._console.print(render(alert))
            except Exception:
                with self._console.capture():
                    pass  # rich keeps what it could not write, and would show it twice
                if not done:
                    raise
                return done  # what was shown must not be shown again
        return len(alerts)

    def _finish(self) -> None:
        self._console.file.flush()


def render(alert: Alert) -> Panel:
    """The block of one (already redacted) alert."""
    where = f"token {alert.first_position}"
    if alert.last_position != alert.first_position:
        where += f" to {alert.last_position}"
    facts = f"request {alert.request.request_id} · {where} · {alert.count} finding"
    facts += "s" if alert.count != 1 else ""
    if alert.stop is not None:
        facts += f" · {alert.stop.value.replace('_', ' ')}"
    if alert.routes:
        facts += f" · for {', '.join(alert.routes)}"
    lines = [Text(visible(facts))]
    lines += [_evidence(e) for e in alert.evidence]
    title = Text(f"{alert.severity.upper()} {visible(alert.title)} [{visible(alert.rule_id)}]")
    return Panel(
        Group(*lines), title=title, title_align="left", border_style=_STYLE[alert.severity]
    )


def _evidence(evidence: Evidence) -> Text:
    fve = finite(evidence.fve)
    line = Text(f"@{evidence.finding.position} {evidence.phase} ", style="dim")
    line.append(f"FVE {fve:.2f}" if fve is not None else "FVE unknown")
    if evidence.finding.support_asked:
        support = finite(evidence.finding.support)
        line.append(f" · support {support:.2f}" if support is not None else " · support unknown")
    line.append(f" · {unsupported_said(evidence.finding)}")
    shown = (
        ("token", evidence.token),
        ("matched", _matched(evidence)),
        ("reads", evidence.explanation),
    )
    for name, content in shown:
        if content:
            line.append(f"\n  {name} ", style="dim")
            line.append(visible(_short(content)))
    return line


def _matched(evidence: Evidence) -> str:
    """The words that matched, each once; "" where they are withheld."""
    texts = [span.text for span in evidence.finding.spans if span.text]
    if any(text.startswith(HASH_PREFIX) for text in texts):
        return ""
    return " · ".join(list(dict.fromkeys(map(matched_words, texts)))[:MATCHES])


def _short(content: str) -> str:
    if content.startswith(HASH_PREFIX):
        return content[: len(HASH_PREFIX) + HASH_DIGITS] + "…"
    return content if len(content) <= SHOWN_CHARS else content[:SHOWN_CHARS] + "…"


def visible(text: str) -> str:
    """Text that cannot drive the terminal: control and format characters become U+FFFD.

    Decoded text and prompts are untrusted; an escape sequence in them could rewrite the screen.
    """
    return "".join(
        " " if c in "\n\t" else "\ufffd" if unicodedata.category(c) in _UNSAFE else c for c in text
    )


_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn"}
