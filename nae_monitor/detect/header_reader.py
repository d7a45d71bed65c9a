"""Reads what a rule of any kind says of itself: names, severity, its needs, where it is from."""

from __future__ import annotations

import importlib.metadata
import re
import uuid
from typing import Any, cast, get_args

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from nae_monitor.detect.reading import Reader
from nae_monitor.detect.schema import (
    RISK_BANDS,
    SCHEMA_VERSION,
    Enforcement,
    Related,
    RelationType,
    RequiredNla,
    Status,
)
from nae_monitor.records import Severity

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


def read_header(reader: Reader) -> dict[str, Any]:
    """What every rule says of itself, by the names of :class:`Rule`'s fields."""
    version = reader.integer("schema_version", 0, 10**6)
    if version != SCHEMA_VERSION:
        key = "schema_version" if "schema_version" in reader.value else None
        reader.fault(key, "schema_version must be 1", f"write `schema_version: {SCHEMA_VERSION}`")
    _require_engine(reader)
    severity = Severity(reader.choice("severity", [s.value for s in Severity]))
    return {
        "id": _identifier(reader),
        "name": read_name(reader),
        "title": reader.text("title", max_chars=200),
        "version": _version(reader),
        "severity": severity,
        "status": cast(Status, reader.choice("status", get_args(Status), "experimental")),
        "risk_score": _risk_score(reader, severity),
        "description": reader.text("description", ""),
        "author": reader.text("author", ""),
        "date": reader.date("date"),
        "related": _related(reader),
        "required_nla": _required_nla(reader),
        "references": reader.texts("references"),
        "tags": reader.texts("tags", 100),
        "falsepositives": reader.texts("falsepositives"),
        "guide": reader.text("guide", ""),
        "enabled": reader.boolean("enabled", True),
        "enforcement": cast(
            Enforcement, reader.choice("enforcement", get_args(Enforcement), "shadow")
        ),
    }


def _identifier(reader: Reader) -> str:
    text = reader.text("id", max_chars=64)
    try:
        return str(uuid.UUID(text))
    except ValueError:
        if text:
            reader.fault("id", "id is not a UUID", "make one with uuid.uuid4()")
        return ""


def read_name(reader: Reader) -> str:
    """The handle under ``name``."""
    name = reader.text("name", max_chars=64)
    if name and not _NAME.fullmatch(name):
        reader.fault("name", f"name {name!r} is not a handle", "use a-z, 0-9 and _, letter first")
    return name


def _version(reader: Reader) -> str:
    if reader.has("version") and type(reader.value["version"]) is int:
        return str(reader.value["version"])
    return reader.text("version", "1", max_chars=40)


def _risk_score(reader: Reader, severity: Severity) -> int | None:
    score = reader.integer("risk_score", 0, 100)
    low, high = RISK_BANDS[severity]
    if score is not None and not low <= score <= high:
        message = f"risk_score {score} is outside the band of severity {severity.value}"
        reader.fault("risk_score", message, f"{low} to {high}", "NM312")
    return score


def _require_engine(reader: Reader) -> None:
    specifier = reader.text("required_engine_version", "", max_chars=100)
    if not specifier:
        return
    try:
        ours = importlib.metadata.version("nae-monitor")
        if not SpecifierSet(specifier).contains(ours, prereleases=True):
            message = f"the rule needs engine {specifier}; this is {ours}"
            reader.fault("required_engine_version", message, "update nae-monitor")
    except InvalidSpecifier:
        message = "required_engine_version is not a version specifier"
        reader.fault("required_engine_version", message, 'write it as ">=0.1"')


def _related(reader: Reader) -> tuple[Related, ...]:
    found: list[Related] = []
    for inner in reader.children("related"):
        kind = cast(RelationType, inner.choice("type", get_args(RelationType)))
        found.append(Related(_identifier(inner), kind))
        inner.finish()
    return tuple(found)


def _required_nla(reader: Reader) -> RequiredNla | None:
    if not reader.has("required_nla"):
        return None
    inner = reader.child("required_nla")
    needed = RequiredNla(
        base_model=inner.text("base_model", "", max_chars=200) or None,
        layer=inner.integer("layer", 0, 10_000),
    )
    inner.finish()
    if needed == RequiredNla(None, None):
        inner.fault(None, "required_nla asks for nothing", "give a base_model or a layer")
    return needed
