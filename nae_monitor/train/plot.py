"""One picture of a run, as SVG: losses and fidelity over the steps of both halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from nae_monitor.train.files import replacing
from nae_monitor.train.metrics import METRICS, STEPS, read_metrics

PLOT = "run.svg"
WIDTH, HEIGHT, LEFT, TOP = 520, 260, 56, 34  # of one panel, and its margins
COLOURS = ("#9aa4b2", "#1f6feb", "#d1242f", "#1a7f37", "#8250df")
SHOWN_STEPS = 200  # points of a line a step; more are averaged

Line = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    lines: dict[str, Line]


def write_plot(directory: Path) -> None:
    """Draw ``directory/run.svg`` from the metrics found there.

    Raises:
        ConfigurationError: it cannot be written.
    """
    panels = [
        _Panel("verbalizer: loss", _lines(directory, "av", ("validation_loss", "gap"), "loss")),
        _Panel("reconstructor: loss", _lines(directory, "ar", (), "loss")),
        _Panel("reconstructor: FVE, validation", _lines(directory, "ar", _FIDELITY, None)),
    ]
    with replacing(directory / PLOT) as temporary:
        temporary.write_text(draw([p for p in panels if p.lines]), encoding="utf-8")


_FIDELITY = ("fve_gold", "fve_round_trip")


def _lines(
    directory: Path, half: str, measures: Sequence[str], each_step: str | None
) -> dict[str, Line]:
    """Every line of a panel; rounds of expert iteration follow behind the first training."""
    rounds = sorted(
        (directory / "expert").glob("round-*"), key=lambda p: int(p.name.partition("-")[2])
    )
    found: dict[str, Line] = {}
    offset = 0
    for folder in (directory / half, *(r / half for r in rounds)):
        steps, rows = read_metrics(folder / STEPS), read_metrics(folder / METRICS)
        if each_step and steps:
            found.setdefault("training loss", []).extend(_thinned(steps, each_step, offset))
        for name in measures:
            line = [(offset + r["step"], r[name]) for r in rows if name in r]
            if line:
                found.setdefault(name.replace("_", " "), []).extend(line)
        offset += max((r["step"] for r in [*steps, *rows]), default=0)
    return found


def _thinned(rows: list[dict[str, Any]], name: str, offset: int) -> Line:
    size = max(1, len(rows) // SHOWN_STEPS)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(offset + p[-1]["step"], sum(r[name] for r in p) / len(p)) for p in parts]


def draw(panels: Sequence[_Panel]) -> str:
    """An SVG with the panels one below the other."""
    body = "".join(_panel(panel, i * HEIGHT) for i, panel in enumerate(panels))
    size = f'width="{WIDTH}" height="{HEIGHT * max(1, len(panels))}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _panel(panel: _Panel, top: int) -> str:
    points = [point for line in panel.lines.values() for point in line]
    (x0, x1), (y0, y1) = (_range([p[axis] for p in points]) for axis in (0, 1))
    width, height = WIDTH - LEFT - 20, HEIGHT - TOP - 40

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (point[0] - x0) / (x1 - x0) * width
        y = top + TOP + (y1 - point[1]) / (y1 - y0) * height
        return f"{x:.1f},{y:.1f}"

    parts = [_text(LEFT, top + 18, panel.title, weight="bold")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = LEFT + share * width, top + TOP + (1 - share) * height
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>'
        )
        parts.append(_text(LEFT - 6, y + 4, f"{y0 + share * (y1 - y0):.3g}", anchor="end"))
        label = f"{x0 + share * (x1 - x0):.0f}"
        parts.append(_text(x, top + TOP + height + 16, label, anchor="middle"))
    for i, (name, line) in enumerate(panel.lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" '
            f'points="{" ".join(map(place, line))}"/>'
        )
        parts.append(_text(LEFT + 150 * i, top + HEIGHT - 8, name, fill=colour))
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _text(x: float, y: float, text: str, **style: str) -> str:
    names = {"anchor": "text-anchor", "weight": "font-weight"}
    attributes = "".join(f' {names.get(k, k)}="{v}"' for k, v in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text)}</text>'
