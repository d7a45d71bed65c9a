"""``alerts import|list|show|ack|label|labels``: what people make of alerts."""

from __future__ import annotations

import getpass
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli import alerts_source as source
from nae_monitor.cli.configuration import JsonOption, settings_from
from nae_monitor.cli.terminal import error_line, json_line, output, printable

if TYPE_CHECKING:
    from nae_monitor.alert.triage import Label, Triaged, TriageStore

SHOWN_ID_CHARS = 8
STYLES = {
    "informational": "cyan",
    "low": "green",
    "medium": "yellow",
    "high": "red",
    "critical": "bold white on red",
}


class Right(StrEnum):
    """Whether an alert was right."""

    TP = "tp"
    FP = "fp"


class Verdict(StrEnum):
    """What to say of an alert; ``none`` takes it back."""

    TP = "tp"
    FP = "fp"
    NONE = "none"


IdsArgument = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids as `list` shows them, or longer.")
]
NoteOption = Annotated[str, typer.Option(help="Why, for whoever reads it later.")]
SeverityOption = Annotated[
    list[str] | None, typer.Option(help="Only of this severity; may be repeated.")
]


def take_in(
    file: Annotated[Path | None, typer.Argument(help="A file of the jsonl sink.")] = None,
    kafka: source.KafkaOption = None,
    topic: source.TopicOption = None,
    config: source.ReadConfigOption = None,
    store: source.StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take alerts into the triage store. Those that are there keep their labels.

    The store is bounded, by `alert.triage` of the configuration: what goes is said.
    """
    settings = settings_from(config)
    if file is not None and kafka is None:
        reader = source.reader_of(file, None, None)
    else:
        reader = source.reader_of(file, kafka, topic, config=config)
    count = 0

    def counted() -> Any:
        nonlocal count
        for alert in reader:
            count += 1
            yield alert

    with source.open_store(store, must_exist=False, bounds=settings.alert.triage) as opened:
        new = opened.add(counted())
        gone = opened.forgotten
    source.tell_skipped(reader)
    if as_json:
        json_line({"read": count, "new": new, "forgotten": gone})
    else:
        told = f", {gone} forgotten, as alert.triage bounds the store" if gone else ""
        output().print(f"{count} alerts read, {new} of them new{told}")


def list_alerts(
    severity: SeverityOption = None,
    rule: Annotated[str | None, typer.Option(help="Only of this rule.")] = None,
    label: Annotated[Verdict | None, typer.Option(help="Only with this label.")] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Only those nobody has taken on.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    store: source.StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List alerts of the triage store, oldest first."""
    from nae_monitor.alert.triage import Wanted

    wanted = Wanted(
        severities=tuple(_severity(name) for name in severity) if severity else None,
        rule=rule,
        is_acked=False if is_open else None,
        label=None if label is None else _label(label),
        limit=limit,
    )
    with source.open_store(store) as opened:
        found = list(opened.alerts(wanted))
    if as_json:
        for one in found:
            json_line(_as_json(one))
    else:
        _print_table(found)


def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it, or longer.")],
    store: source.StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one alert of the triage store with its evidence and who said what of it."""
    with source.open_store(store) as opened:
        one = opened.find(id_)
        history = opened.history(one.alert)
    if as_json:
        json_line({**_as_json(one), "history": history})
    else:
        from nae_monitor.cli.alerts_view import print_alert

        print_alert(one, history)


def ack(
    ids: IdsArgument,
    note: NoteOption = "",
    store: source.StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that you have taken alerts on. All ids are looked up before anything is changed."""
    with source.open_store(store) as opened:
        found = [opened.find(id_) for id_ in ids]
        for one in found:
            opened.ack(one.alert, note, _who())
        _tell(opened, found, as_json)


def label(
    ids: IdsArgument,
    verdict: Annotated[
        Verdict, typer.Option("--as", help="True positive, false positive, or take it back.")
    ],
    note: NoteOption = "",
    store: source.StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether alerts were right. All ids are looked up before anything is changed."""
    with source.open_store(store) as opened:
        found = [opened.find(id_) for id_ in ids]
        for one in found:
            opened.label(one.alert, _label(verdict), note, _who())
        _tell(opened, found, as_json)


def labels(
    rule: Annotated[
        str | None, typer.Option(help="Of this rule, as samples for `rules tune`.")
    ] = None,
    verdict: Annotated[Right, typer.Option("--as", help="With --rule: which samples.")] = Right.FP,
    recording: Annotated[
        list[Path] | None,
        typer.Option(help="With --rule: recordings that hold the texts, where alerts do not."),
    ] = None,
    store: source.StoreOption = None,
) -> None:
    """Print labels as the rule tools take them.

    Without --rule: expectations, for `rules backtest --expect`. With it: a corpus of the labelled
    evidence, for `rules tune --fp` or `--tp`; exit code 1 where some of it has no readable text.
    """
    from nae_monitor.alert.labels import expectations

    with source.open_store(store) as opened:
        labelled = [one for one in opened.alerts() if one.label]
    if rule is None:
        typer.echo(json.dumps(expectations(labelled), indent=2))
    elif _print_samples(labelled, rule, verdict, recording or []):
        raise typer.Exit(1)


def _print_samples(
    labelled: list[Triaged], rule: str, verdict: Right, recordings: list[Path]
) -> int:
    """Print the corpus; returns how many places have no text."""
    from nae_monitor.alert.labels import labelled_places, samples
    from nae_monitor.cli.rules_corpus import samples_at
    from nae_monitor.detect.tools.corpus import line_of

    missing = labelled_places(labelled, rule, verdict.value)
    for sample in samples(labelled, rule, verdict.value):
        if sample["id"] in missing:
            missing.discard(sample["id"])
            json_line(sample)
    for recorded in samples_at(recordings) if missing and recordings else ():
        if recorded.id in missing:
            missing.discard(recorded.id)
            json_line(line_of(recorded))
    if missing:
        error_line(
            f"{len(missing)} labelled places have no readable text; name the recordings they come"
            " from with --recording",
            "note: ",
        )
    return len(missing)


def _tell(store: TriageStore, changed: list[Triaged], as_json: bool) -> None:
    """With --json: what each of them is now."""
    for before in changed if as_json else ():
        now = store.find(before.alert.id)
        named = {"id": now.alert.id, "source": now.alert.source}
        json_line({**named, **_state(now)})


def _state(one: Triaged) -> dict[str, Any]:
    return {"acked": one.is_acked, "label": one.label or None, "note": one.note}


def _label(verdict: Verdict) -> Label:
    given: dict[Verdict, Label] = {Verdict.TP: "tp", Verdict.FP: "fp", Verdict.NONE: ""}
    return given[verdict]


def _severity(name: str) -> str:
    from nae_monitor.records import Severity

    if name not in list(Severity):
        raise typer.BadParameter(f"{name!r} is no severity; one of: {', '.join(Severity)}")
    return name


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return "unknown"


def _as_json(one: Triaged) -> dict[str, Any]:
    event = {**one.alert.attributes, "data": one.alert.data}
    return {**_state(one), "event": event}


def _print_table(alerts: list[Triaged]) -> None:
    from rich.table import Table
    from rich.text import Text

    from nae_monitor.alert.export import facts_of
    from nae_monitor.cli.rules_backtest_tables import print_wide

    table = Table("id", "time", "severity", "state", "rule", "request", "tokens", box=None)
    for one in alerts:
        facts = facts_of(one)
        first, last = facts["first_position"], facts["last_position"]
        table.add_row(
            printable(one.alert.id[:SHOWN_ID_CHARS]),
            printable(one.alert.time[:19]),
            Text(printable(one.alert.severity), style=STYLES.get(one.alert.severity, "")),
            one.label or ("acked" if one.is_acked else "new"),
            _cell(one.rule),
            _cell(one.request_id),
            f"{first}" if first == last else f"{first}-{last}",
        )
    print_wide(table)


def _cell(text: str) -> str:
    return printable(text.replace("\n", " "))
