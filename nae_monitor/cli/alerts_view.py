"""One alert for a person's eyes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nae_monitor.cli.terminal import output, printable

if TYPE_CHECKING:
    from nae_monitor.alert.triage import Triaged

LEFT_OUT = ("fve", "acked", "id")


def print_alert(one: Triaged, history: Iterable[Mapping[str, Any]]) -> None:
    """Facts, evidence, history; nothing in them can drive the terminal."""
    from rich.text import Text

    from nae_monitor.alert.export import facts_of
    from nae_monitor.alert.labels import evidence_of

    console = output()

    def line(name: str, value: Any, indent: str = "") -> None:
        shown = Text(f"{indent}{name} ", style="dim")
        shown.append(printable(str(value)), style="not dim")
        console.print(shown, soft_wrap=True)

    line("alert", one.alert.id)
    for name, value in facts_of(one).items():
        if name not in LEFT_OUT and value not in (None, ""):
            line(name.replace("_", " "), value)
    for evidence in evidence_of(one.alert):
        line("evidence at token", evidence.get("position"))
        for name in ("phase", "fve", "token", "explanation", "prompt", "output"):
            if evidence.get(name) not in (None, ""):
                line(name, evidence[name], "  ")
    for entry in history:
        when = datetime.fromtimestamp(entry["unix_ns"] / 1e9, UTC).isoformat(timespec="seconds")
        note = f": {entry['note']}" if entry["note"] else ""
        line(when, f"{entry['who']} {entry['what']}{note}")
