"""What the demo shows: a live table of decoded tokens, and the closing summary."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nae_monitor.cli.terminal import errors, output, printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from nae_monitor.records import Activation, Decoding, Finding, Verdict

SHOWN_ROWS = 12


class DemoScreen:
    """The live table: the last decoded tokens, what they were read as, and the rules they hit."""

    def __init__(self, silent: bool) -> None:
        self.title = ""
        self._silent = silent
        self._rows: deque[tuple[str, ...]] = deque(maxlen=SHOWN_ROWS)
        self._console = errors()
        self._live: Live | None = None

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Say that something takes a while."""
        if self._silent:
            yield
            return
        with self._console.status(text):
            yield

    def __enter__(self) -> DemoScreen:
        from rich.live import Live

        if not self._silent and self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def observe(
        self, activation: Activation, decoding: Decoding, findings: Sequence[Finding]
    ) -> None:
        """Add one judged row; called in the monitor's own thread."""
        fve = "unknown" if decoding.fve is None else f"{decoding.fve:.2f}"
        hits = ", ".join(f.rule_name for f in findings if f.state.value == "match")
        token = printable(activation.token).replace("\n", "\\n")
        self._rows.append((str(activation.position), token, printable(decoding.text), fve, hits))
        if self._live is not None:
            self._live.update(self._table())

    def verdict(self, prompt: Mapping[str, str], verdict: Verdict) -> None:
        """Print how a conversation ended, above the live table."""
        if self._silent:
            return
        state = verdict.state.value
        is_alert = state == "alert"
        mark = "ALERT" if is_alert else state
        text = f"{mark:9} {prompt['kind']:9} {prompt['prompt'][:60]:60} {_reason(verdict)}"
        self._console.print(text, style="bold red" if is_alert else None, soft_wrap=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=printable(self.title)[:100], expand=True, title_justify="left")
        table.add_column("at", justify="right", width=4)
        table.add_column("token", width=12, no_wrap=True)
        table.add_column("explanation", ratio=1)
        table.add_column("FVE", justify="right", width=7)
        table.add_column("rules hit", width=18)
        for row in list(self._rows):
            table.add_row(*(Text(cell) for cell in row))
        return table


def _reason(verdict: Verdict) -> str:
    """The rules that alert, what is undecided, or else the signs that stayed below an alert."""
    matched = [f for f in verdict.findings if f.state.value == "match"]
    rules = {f.rule_name for f in matched if f.severity.value != "informational"}
    signs = {f.rule_name for f in matched} - rules
    shown = ", ".join(sorted(rules)) or "; ".join(verdict.reasons)
    return shown or (f"signs: {', '.join(sorted(signs))}" if signs else "")


def print_summary(summary: Mapping[str, Any], tokens_per_s: Mapping[str, list[float]]) -> None:
    """Print the closing table; ``tokens_per_s`` holds each variant's measurements."""
    from rich.table import Table

    console = output()
    table = Table(title="Demo summary", show_header=False, title_justify="left")
    table.add_column()
    table.add_column()
    tokens = summary["tokens"]
    table.add_row("tokens seen", f"{tokens['seen']}")
    table.add_row("tokens screened", f"{tokens['screened']} ({tokens['excluded']} too early)")
    reused = f" ({tokens['reused']} used a decode made before)" if tokens["reused"] else ""
    table.add_row("tokens decoded", f"{tokens['decoded']}{reused}")
    table.add_row("tokens dropped", f"{summary['dropped'] or 0}")
    table.add_row("alerts", f"{summary['alerts']}")
    for kind, states in summary["verdicts"].items():
        text = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
        table.add_row(f"{kind} prompts", text)
    for name, median in summary["tokens_per_s"].items():
        values = tokens_per_s[name]
        table.add_row(f"tokens/s, {name}", f"{median} (median of {len(values)} prompts)")
    for name, path in summary["files"].items():
        table.add_row(name, str(path))
    console.print(table)
    console.print(
        "Decoding shares this machine's processor with the model here; in production it runs "
        "elsewhere.\nFVE says how much of an activation its text gives back, not that the text "
        "is true."
    )
