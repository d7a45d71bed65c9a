"""Reads ``suppress`` and ``actions``."""

from __future__ import annotations

import re
from typing import Any, cast, get_args

from nae_monitor.detect.reading import Reader
from nae_monitor.detect.response import (
    Actions,
    Overflow,
    RaiseSampling,
    SamplingScope,
    StopGeneration,
    StopMode,
    Suppression,
)

ACTIONS = ("alert", "raise_sampling", "stop_generation", "tag", "capture")
REQUEST_KEYS = ("request_id", "group_id", "session_id", "tenant", "model")
UNIT_NS = {"s": 10**9, "m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9}
MAX_DURATION_NS = 366 * UNIT_NS["d"]
_DURATION = re.compile(r"(\d{1,9})\s*([smhd])", re.ASCII)
_RATE = re.compile(r"(\d{1,9})\s*/\s*(\d{0,9})([smhd])", re.ASCII)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_ROUTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)


def read_suppression(reader: Reader) -> Suppression | None:
    """The mapping under ``suppress``; None where the rule has none."""
    if not reader.has("suppress"):
        return None
    inner = reader.child("suppress")
    quiet_ns = read_duration(inner, "for") or 0
    max_alerts, period_ns = _max_alerts(inner)
    overflow = cast(Overflow, inner.choice("overflow", get_args(Overflow), "summarize"))
    found = Suppression(
        group_by=read_group_by(inner, ("rule_id", "rule_name")),
        quiet_ns=quiet_ns,
        max_alerts=max_alerts,
        period_ns=period_ns,
        overflow=overflow,
    )
    if not quiet_ns and max_alerts is None and not {"for", "max_alerts"} & set(inner.value):
        inner.fault(None, "suppress holds nothing back", "add `for: 10m` or `max_alerts: 30/h`")
    if "overflow" in inner.value and "max_alerts" not in inner.value:
        inner.fault("overflow", "overflow without max_alerts has no effect", "add max_alerts")
    inner.finish()
    return found


def read_duration(reader: Reader, key: str) -> int | None:
    """Nanoseconds of a text such as ``10m`` or ``30s``; None where missing or faulty."""
    if not reader.has(key):
        return None
    value = reader.value[key]
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    duration_ns = int(found[1]) * UNIT_NS[found[2]] if found else 0
    if not 0 < duration_ns <= MAX_DURATION_NS:
        reader.fault(key, f"{key} is not a duration", "write it as 30s, 10m, 2h or 7d")
        return None
    return duration_ns


def read_group_by(reader: Reader, extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Request keys, with or without their ``request.``; ``request_id`` where none is given.

    ``extra`` are names that are allowed and change nothing, because every group has them.
    """
    names = [name.removeprefix("request.") for name in reader.texts("group_by", 80)]
    for index, name in enumerate(names):
        if not _KEY.fullmatch(name):
            mend = "use " + ", ".join((*REQUEST_KEYS, "or a key of the request's attributes"))
            reader.item_fault("group_by", index, "is not a request key", mend)
    kept = tuple(dict.fromkeys(name for name in names if name not in extra))
    return kept if names else ("request_id",)


def _max_alerts(reader: Reader) -> tuple[int | None, int]:
    if not reader.has("max_alerts"):
        return None, 0
    value = reader.value["max_alerts"]
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    count = int(found[1]) if found else 0
    period_ns = int(found[2] or 1) * UNIT_NS[found[3]] if found else 0
    if not 1 <= count <= 10**6 or not 0 < period_ns <= MAX_DURATION_NS:
        mend = "write it as 30/h or 5/10m"
        reader.fault("max_alerts", "max_alerts is not a number in a time", mend)
        return None, 0
    return count, period_ns


def read_actions(reader: Reader, enforcement: str) -> Actions:
    """The list under ``actions``: one action an item. ``enforcement`` is the rule's own."""
    found: dict[str, Any] = {}
    for number, item in enumerate(reader.sequence("actions")):
        if isinstance(item, str):
            _plain_action(reader, number, item, found)
            continue
        inner = reader.at("actions", number)
        kinds = [kind for kind in ACTIONS if kind in inner.value]
        if isinstance(item, dict) and len(item) != 1:
            inner.fault(None, "an item is one action", "write `- alert: {routes: […]}`")
        for kind in kinds:
            if kind in found:
                inner.fault(kind, f"the action {kind} is there twice", "keep one")
            found[kind] = _action(inner, kind, enforcement)
        inner.finish(known=ACTIONS)
    return Actions(
        routes=found.get("alert") or (),
        raise_sampling=found.get("raise_sampling"),
        stop_generation=found.get("stop_generation"),
        tags=found.get("tag") or (),
        capture=bool(found.get("capture")),
    )


def _plain_action(reader: Reader, number: int, item: str, found: dict[str, Any]) -> None:
    if item not in ("alert", "capture"):
        mend = "one of: " + ", ".join(ACTIONS)
        reader.item_fault("actions", number, "is not an action that stands alone", mend)
    elif item in found:
        reader.item_fault("actions", number, "is there twice", "keep one")
    found[item] = item == "capture" or ()


def _action(reader: Reader, kind: str, enforcement: str) -> Any:
    if kind == "alert":
        return _routes(reader.child("alert"))
    if kind == "raise_sampling":
        return _raise_sampling(reader.child("raise_sampling"))
    if kind == "stop_generation":
        return _stop_generation(reader.child("stop_generation"), enforcement)
    if kind == "tag":
        return reader.texts("tag", 100)
    return reader.boolean("capture", False)


def _routes(reader: Reader) -> tuple[str, ...]:
    routes = reader.texts("routes", 100)
    for index, route in enumerate(routes):
        if not _ROUTE.fullmatch(route):
            reader.item_fault("routes", index, "is not a route", "use letters, digits, _, . and -")
    reader.finish()
    return tuple(dict.fromkeys(routes))


def _raise_sampling(reader: Reader) -> RaiseSampling:
    if not reader.has("rate"):
        reader.fault(None, "raise_sampling lacks its rate", "add `rate: 1.0`")
    rate = reader.number("rate", 0, 1, 1.0)
    if rate == 0:
        reader.fault("rate", "rate is 0", "above 0, at most 1")
    found = RaiseSampling(
        rate=cast(float, rate),
        scope=cast(SamplingScope, reader.choice("scope", get_args(SamplingScope), "request")),
        tokens=cast(int, reader.integer("tokens", 1, 10**6, 256)),
    )
    reader.finish()
    return found


def _stop_generation(reader: Reader, enforcement: str) -> StopGeneration:
    found = StopGeneration(
        mode=cast(StopMode, reader.choice("mode", get_args(StopMode), enforcement)),
        min_fidelity=reader.number("min_fidelity", -1e6, 1.0),
        min_hits=cast(int, reader.integer("min_hits", 1, 10**6, 1)),
        within_tokens=reader.integer("within_tokens", 1, 10**6),
    )
    reader.finish()
    return found
