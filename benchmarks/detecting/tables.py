"""What is printed and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.table import Table

from detecting.apart import Apart
from detecting.choices import Choice
from detecting.figures import Interval
from detecting.outcome import Line, Point, Speed

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS: dict[Choice, str] = {
    "ar": "#1f6feb", "contrast": "#1a7f37", "probe": "#8250df",
    "random": "#57606a", "uniform": "#9aa4b2", "entropy": "#d1242f",
}  # fmt: skip


def curve_table(points: Sequence[Point]) -> Table:
    """TPR at 1 % FPR and areas of every cell."""
    table = _table(
        "TPR at 1 % FPR by choice and budget, 95 % intervals by conversation",
        "choice", "budget", "spent", "n", "decodes alone", "score and decodes", "AUROC",
        "partial AUROC", "alerts per 1,000", "of foreign ones", "cascade",
    )  # fmt: skip
    for p in sorted(points, key=lambda p: (p.cell.budget, list(COLOURS).index(p.cell.choice))):
        scored = p.both.scored
        sizes = "/".join(str(len(s)) for s in (scored.threshold, scored.hostile, scored.ordinary))
        table.add_row(
            p.cell.choice, str(p.cell.budget), f"{p.spent:.1f}", sizes, str(p.decodes.recall),
            str(p.both.recall), str(p.both.area), str(p.both.partial), _rate(p.both.alerts),
            _rate(p.both.foreign), str(p.cascade.recall),
        )  # fmt: skip
    return table


def line_table(title: str, lines: Sequence[Line]) -> Table:
    """The same figures of ways without a budget."""
    table = _table(
        title, "means", "TPR at 1 % FPR", "AUROC", "partial AUROC", "alerts per 1,000",
        "of foreign ones",
    )  # fmt: skip
    for line in lines:
        table.add_row(
            line.name, str(line.recall), str(line.area), str(line.partial), _rate(line.alerts),
            _rate(line.foreign),
        )  # fmt: skip
    return table


def apart_table(title: str, rows: Sequence[tuple[str, int, Interval]]) -> Table:
    """TPR of some conversations."""
    table = _table(title, "means", "n", "TPR at the same threshold")
    for name, count, found in rows:
        table.add_row(name, str(count), str(found))
    return table


def apart_tables(apart: Apart) -> list[Table]:
    """What the monitor says of conversations of other sources, and of exam-like ones."""
    sorts = list(apart.told[0].shares)
    share = _table(
        "share above the curve's thresholds", "means",
        *(f"{sort}, n = {apart.counts[sort]}" for sort in sorts),
    )  # fmt: skip
    for told in apart.told:
        share.add_row(told.name, *(str(told.shares[sort]) for sort in sorts))
    exams = _table(
        "exam-like questions of unseen sets", "means", "TPR at 1 % FPR",
        "AUROC against natural questions", "natural ones above",
    )  # fmt: skip
    for row in apart.exams:
        exams.add_row(row.name, str(row.recall), str(row.area), str(row.natural))
    aware = _table("with a decode of evaluation awareness", "conversations", "share")
    for sort, found in apart.aware.items():
        aware.add_row(sort, str(found))
    return [share, exams, aware]


def speed_table(rows: Sequence[tuple[str, Speed]]) -> Table:
    """Tokens to alert."""
    table = _table(
        "tokens of content from the first one to the alert, hostile conversations that are found",
        "choice and budget", "found", "median", "95 % interval", "found within the prompt",
    )  # fmt: skip
    for name, speed in rows:
        table.add_row(
            name, str(speed.found), f"{speed.median_tokens:.0f}",
            f"{speed.low:.0f} to {speed.high:.0f}", f"{100 * speed.in_prompt:.0f} %",
        )  # fmt: skip
    return table


def cost_table(points: Sequence[Point], tokens_per_s: float, explanations_per_s: float) -> Table:
    """Tokens a second of one core that serves and decodes in turn."""
    table = _table("what decoding costs one core", "budget", "spent", "tokens/s", "of no decoding")
    spent = {point.cell.budget: point.spent for point in points} | {0: 0.0}
    for budget, decodes in sorted(spent.items()):
        rate = 100 / (100 / tokens_per_s + decodes / explanations_per_s)
        share = f"{100 * rate / tokens_per_s:.0f} %"
        table.add_row(str(budget), f"{decodes:.1f}", f"{rate:.0f}", share)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    return table


def _rate(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:.1f} ({found.low:.1f} to {found.high:.1f})"


def draw(points: Sequence[Point], alone: Mapping[str, Line], place: Path) -> None:
    """TPR at 1 % FPR over the budget, by decodes alone and with the score that chose them.

    Args:
        points: of the curve.
        alone: what each screen finds without a decode.
        place: SVG or PNG file.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, title in zip(axes, ("decodes alone", "score and decodes"), strict=True):
        for choice, colour in COLOURS.items():
            shown = [
                (p.cell.budget, (p.decodes if title == "decodes alone" else p.both).recall)
                for p in points
                if p.cell.choice == choice
            ]
            if title != "decodes alone" and choice in alone:
                shown.append((0, alone[choice].recall))
            _line(axis, sorted(shown, key=lambda pair: pair[0]), colour, choice)
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set_xticks([0, 1, 2, 4, 8, 16], ["0", "1", "2", "4", "8", "16"])
        axis.set(title=title, xlabel="decodes per 100 tokens", ylim=(0, 1))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("TPR at 1 % FPR, by conversation")
    axes[1].legend(frameon=False, fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(place)
    plt.close(figure)


def _line(axis: Any, shown: Sequence[tuple[int, Interval]], colour: str, label: str) -> None:
    if not shown:
        return
    x = [budget for budget, _ in shown]
    values = np.array([[r.value, r.low, r.high] for _, r in shown])
    axis.plot(x, values[:, 0], marker="o", markersize=3.5, color=colour, label=label)
    axis.fill_between(x, values[:, 1], values[:, 2], color=colour, alpha=0.1, linewidth=0)
