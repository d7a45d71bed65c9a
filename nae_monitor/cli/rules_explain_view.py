"""An explanation as a tree on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nae_monitor.cli.terminal import output, printable

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from nae_monitor.detect.tools.corpus import Sample
    from nae_monitor.detect.tools.explain import Explanation, SelectionReport, Step

ANSWERS = {True: ("PASS", "green"), False: ("FAIL", "red"), None: ("UNKNOWN", "yellow")}
OUTCOMES = {"match": "bold red", "no_match": "green", "undecided": "yellow"}
SHOWN_SPANS = 4
SHOWN_CHARS = 100


def print_explanation(found: Explanation, sample: Sample) -> None:
    """The verdict, the condition's tree, exceptions and the gate."""
    from rich.text import Text
    from rich.tree import Tree

    console = output()
    verdict = Text(found.outcome.replace("_", " ").upper(), style=OUTCOMES[found.outcome])
    head = Text(f"{found.rule.name} (version {found.rule.version}): ").append_text(verdict)
    if found.severity is not None:
        head.append(f", severity {found.severity.value}", style="default")
    if found.held_by:
        head.append(f"; held back by {printable(found.held_by)}", style="default")
    console.print(head)
    console.print(Text(f"text ({sample.id}): {_cut(sample.decoding.text)}", style="dim"))
    tree = Tree("condition", guide_style="dim")
    reports = {report.name: report for report in found.selections}
    asked = _grow(tree, found.condition, reports)
    for exception in found.exceptions:
        label = _label(exception.answer, f"exception {exception.name}: {_cut(exception.reason)}")
        branch = tree.add(label.append(" (expired: no effect)" if exception.expired else ""))
        if (own := reports.get(f"exception.{exception.name}")) is not None:
            _details(branch, own)
    for name in reports.keys() - asked:
        if not name.startswith("exception."):
            _details(
                tree.add(_label(reports[name].answer, f"{name} (asked by exceptions)")),
                reports[name],
            )
    console.print(tree)
    console.print(_fidelity(found))


def _grow(tree: Tree, step: Step, reports: dict[str, SelectionReport]) -> set[str]:
    """Add a step and its parts; returns the selections shown."""
    report = reports.get(step.text)
    if report is None:
        branch = tree.add(_label(step.answer, step.text))
        return {name for part in step.parts for name in _grow(branch, part, reports)}
    where = report.field + ("" if report.quotes == "any" else f", {report.quotes} quotes")
    branch = tree.add(_label(step.answer, f"{report.name}: {report.kind} in {where}"))
    _details(branch, report)
    return {step.text}


def _label(answer: bool | None, text: str) -> Text:
    from rich.text import Text

    word, style = ANSWERS[answer]
    return Text(word, style=style).append(f" {printable(text)}", style="default")


def _details(branch: Tree, report: SelectionReport) -> None:
    from rich.text import Text

    if report.why:
        branch.add(Text(f"unknown: {report.why}"))
    for span in report.spans[:SHOWN_SPANS]:
        score = "" if span.score is None else f", score {span.score:g}"
        place = f"{span.field} {span.start}-{span.end}{score}: "
        branch.add(Text(place).append(_cut(span.text), style="bold"))
    if len(report.spans) > SHOWN_SPANS:
        branch.add(Text(f"and {len(report.spans) - SHOWN_SPANS} more"))
    near = report.nearest
    if near is not None:
        branch.add(Text(f"best {near.score:g}, asked for {near.threshold:g}: {_cut(near.target)}"))
        if near.negative is not None and near.negative_score is not None:
            ahead = near.score - near.negative_score
            branch.add(
                Text(
                    f"nearest negative {near.negative_score:g} ({ahead:+.4g} ahead, asked for "
                    f"{near.margin:g}): {_cut(near.negative)}"
                )
            )


def _fidelity(found: Explanation) -> str:
    figure = "not known" if found.figure is None else f"{found.figure:g}"
    gate = "no gate" if found.minimum is None else f"gate at {found.minimum:g}"
    return f"fidelity: {found.metric} {figure}, {gate}"


def _cut(text: str) -> str:
    shown = printable(text).replace("\n", " ")
    return shown if len(shown) <= SHOWN_CHARS else shown[:SHOWN_CHARS] + "…"
