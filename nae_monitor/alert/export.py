"""Alerts in the formats of other tools: SARIF 2.1.0, OCSF findings, CSV."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nae_monitor.alert.ocsf import PACKAGE_VERSION
from nae_monitor.alert.triage import Triaged
from nae_monitor.spreadsheet import harmless_cell

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVEL = {"informational": "note", "low": "note", "medium": "warning"}  # else error
_IN_PROGRESS, _SUPPRESSED = 2, 3  # OCSF status_id
CSV_COLUMNS = (
    *("time", "severity", "rule", "title", "request_id", "conversation_id", "tenant", "model"),
    *("first_position", "last_position", "count", "fve", "acked", "label", "note", "id"),
)


def ocsf_findings(alerts: Iterable[Triaged]) -> Iterator[dict[str, Any]]:
    """Each alert's finding; acknowledged is in progress, a false positive suppressed."""
    for one in alerts:
        status = _SUPPRESSED if one.label == "fp" else _IN_PROGRESS if one.is_acked else None
        yield {**one.alert.data, **({} if status is None else {"status_id": status})}


def sarif_log(alerts: Iterable[Triaged]) -> dict[str, Any]:
    """One run with a result an alert; a false positive is a suppressed result."""
    rules: dict[str, dict[str, Any]] = {}
    results = [_result(one, rules) for one in alerts]
    driver = {
        "name": "nae-monitor",
        "version": PACKAGE_VERSION,
        "rules": list(rules.values()),
    }
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(one: Triaged, rules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    facts = facts_of(one)
    rule_id = facts["rule"] or "unknown"
    described = {"id": rule_id, "shortDescription": {"text": facts["title"] or "-"}}
    rules.setdefault(rule_id, described)
    first, last = facts["first_position"], facts["last_position"]
    where = f"token {first}" if first == last else f"tokens {first} to {last}"
    name = f"request/{facts['request_id']}/token/{first}"
    result: dict[str, Any] = {
        "ruleId": rule_id,
        "level": _LEVEL.get(one.alert.severity, "error"),
        "message": {"text": f"{facts['title']}: request {facts['request_id']}, {where}"},
        "locations": [{"logicalLocations": [{"fullyQualifiedName": name, "kind": "element"}]}],
        "partialFingerprints": {"eventId/v1": one.alert.id},
        "properties": {k: v for k, v in facts.items() if v not in (None, "")},
    }
    if (count := facts["count"]) is not None and count >= 1:
        result["occurrenceCount"] = count
    if _is_uuid(one.alert.id):
        result["guid"] = one.alert.id
    if one.label == "fp":
        why = {"justification": one.note} if one.note else {}
        result["suppressions"] = [{"kind": "external", "status": "accepted", **why}]
    return result


def csv_text(alerts: Iterable[Triaged]) -> Iterator[str]:
    """A line a time, the headings first. A cell that a spreadsheet would compute is quoted."""
    yield _csv_line(CSV_COLUMNS)
    for one in alerts:
        facts = facts_of(one)
        yield _csv_line([facts[column] for column in CSV_COLUMNS])


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([harmless_cell(cell) for cell in cells])
    return line.getvalue()


def facts_of(one: Triaged) -> dict[str, Any]:
    """What a table shows of an alert, by :data:`CSV_COLUMNS`; unknown: None or ""."""
    info, more = (_mapping(one.alert.data.get(name)) for name in ("finding_info", "unmapped"))
    return {
        "time": one.alert.time,
        "severity": one.alert.severity,
        "rule": one.rule,
        "title": _text(info.get("title")),
        "request_id": one.request_id,
        "conversation_id": _text(more.get("gen_ai.conversation.id")),
        "tenant": _text(more.get("nae.tenant")),
        "model": _text(more.get("gen_ai.request.model")),
        "first_position": _integer(more.get("nae.first_position")),
        "last_position": _integer(more.get("nae.last_position")),
        "count": _integer(more.get("nae.count")),
        "fve": fve if isinstance(fve := more.get("nae.fve"), int | float) else None,
        "acked": one.is_acked,
        "label": one.label,
        "note": one.note,
        "id": one.alert.id,
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _integer(value: Any) -> int | None:
    return value if type(value) is int else None


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
