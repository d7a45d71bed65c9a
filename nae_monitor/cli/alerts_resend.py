"""``alerts resend``: what waits in an outbox, was refused, or lies in a damaged one."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import ConfigOption, JsonOption, settings_from
from nae_monitor.cli.terminal import json_line, output, quiet_libraries

if TYPE_CHECKING:
    from nae_monitor.alert import ContentPolicy
    from nae_monitor.alert.outbox_place import Relayed
    from nae_monitor.settings import Settings

POLL_S = 0.1


def resend(
    config: ConfigOption = None,
    damaged: Annotated[
        Path | None,
        typer.Option("--from", help="A damaged outbox that was moved aside: send what is left."),
    ] = None,
    refused: Annotated[
        bool, typer.Option(help="Send again what the far end refused before.")
    ] = True,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0.0, help="Seconds to wait for the far end.")
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Send what the outboxes of the sinks hold; exit code 1 where something stays.

    Sinks with an outbox are kafka, webhook, and otel with an endpoint.

    Where a monitor is running on an outbox, it sends what this command put back.
    """
    quiet_libraries()
    settings = settings_from(config)
    sinks = _relayed_sinks(settings)
    if not sinks:
        raise typer.BadParameter("the configuration has no sink with an outbox")
    if damaged is not None and len(sinks) > 1:
        sinks = [one for one in sinks if _is_of(damaged, one)]
        if len(sinks) != 1:
            raise typer.BadParameter("--from names a file that lies beside no sink's outbox")
    results = [_resend(one, settings, damaged, refused, wait_s) for one in sinks]
    for result in results:
        if as_json:
            json_line(result)
        else:
            output().print(_line(result), soft_wrap=True)
    if any(result["waiting"] or result["refused"] for result in results):
        raise typer.Exit(1)


def _relayed_sinks(settings: Settings) -> list[Relayed]:
    from nae_monitor.sink_settings import KafkaSettings, OtelSettings, WebhookSettings

    options = (sink.options for sink in settings.alert.sinks)
    return [
        one
        for one in options
        if isinstance(one, KafkaSettings | WebhookSettings)
        or (isinstance(one, OtelSettings) and one.endpoint is not None)
    ]


def _is_of(damaged: Path, options: Relayed) -> bool:
    from nae_monitor.alert.outbox_place import outbox_path
    from nae_monitor.alert.resend import moved_aside

    beside = (path.resolve() for path in moved_aside(outbox_path(options)))
    return damaged.resolve() in beside


def _resend(
    options: Relayed, settings: Settings, damaged: Path | None, refused: bool, wait_s: float
) -> dict[str, Any]:
    from nae_monitor.alert import ContentPolicy, resend
    from nae_monitor.alert.outbox_place import outbox_path
    from nae_monitor.errors import InputDataError

    base, policy = outbox_path(options), ContentPolicy(settings.privacy)
    result: dict[str, Any] = {"outbox": str(base), "put_back": 0, "salvaged": 0, "delivered": 0}
    try:
        if damaged is not None:
            result["salvaged"] = resend.salvage(damaged, base, policy)
        if refused:
            result["put_back"] = resend.restore_rejected(base)
        result["in_use"] = resend.is_in_use(base)
        if not result["in_use"]:
            result["delivered"] = _send(options, policy, wait_s)
        states = [resend.state_of(path) for path in resend.files_of(base)]
    except (OSError, sqlite3.Error) as error:
        raise InputDataError(f"{base}: {error}") from error
    result["waiting"] = sum(state.events for state in states)
    result["refused"] = sum(sum(state.rejected.values()) for state in states)
    return result


def _send(options: Relayed, policy: ContentPolicy, wait_s: float) -> int:
    """Run the sink on its outbox until that is empty, or the time is over."""
    from nae_monitor.alert.relayed import open_sink
    from nae_monitor.health import Health

    sink = open_sink(options, policy, Health())
    end_s = time.monotonic() + wait_s
    try:
        while sink.stats()["pending"] and time.monotonic() < end_s:
            time.sleep(POLL_S)
    finally:
        sink.close(1.0)
    return int(sink.stats()["delivered"])


def _line(result: dict[str, Any]) -> str:
    words = [f"{result['delivered']} sent"]
    words += [f"{result['salvaged']} taken out of the damaged file"] * bool(result["salvaged"])
    words += [f"{result['put_back']} refused before"] * bool(result["put_back"])
    words.append(f"{result['waiting']} waiting")
    words += [f"{result['refused']} refused"] * bool(result["refused"])
    words += ["a running monitor sends what waits"] * bool(result["in_use"])
    return f"{result['outbox']}: {', '.join(words)}"
