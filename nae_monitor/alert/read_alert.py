"""An alert event as it is read back. Untrusted: what is no alert event is None, never raised.

An event of a contract that this package cannot read is an error: skipping it would look like no
alert.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nae_monitor.alert.event import EVENT_TYPE
from nae_monitor.alert.ocsf import OCSF_VERSION
from nae_monitor.errors import InputDataError

_FAMILY, _, _VERSION = EVENT_TYPE.rpartition(".v")


@dataclass(frozen=True, slots=True)
class ReadAlert:
    """One alert event as it came in."""

    source: str  # CloudEvents source
    id: str  # CloudEvents id; unique with source
    key: str  # conversation id, or its keyed hash
    sequence: str  # sorts as text within a key
    time: str  # RFC 3339
    severity: str
    attributes: Mapping[str, Any]  # every CloudEvents attribute
    data: Mapping[str, Any]  # the OCSF Detection Finding


def from_json(line: bytes) -> ReadAlert | None:
    """The alert of one structured event; None where it is none.

    Raises:
        InputDataError: it follows a contract that this package cannot read.
    """
    value = _parse(line)
    if not isinstance(value, dict):
        return None
    data = value.pop("data", None)
    return read_alert(value, data)


def from_record(record: Any) -> ReadAlert | None:
    """The alert of one Kafka record in binary mode; as :func:`from_json`."""
    if record.value is None:
        return None
    attributes = {
        name[3:]: (value or b"").decode("utf-8", "replace")
        for name, value in record.headers
        if name.startswith("ce_")
    }
    return read_alert(attributes, _parse(record.value))


def read_alert(attributes: dict[str, Any], data: Any) -> ReadAlert | None:
    """The alert of attributes without prefix and a finding; as :func:`from_json`."""
    names = ("source", "id", "partitionkey", "sequence", "time", "severitytext")
    if not isinstance(data, dict) or not all(isinstance(attributes.get(n), str) for n in names):
        return None
    kind = attributes.get("type", EVENT_TYPE)
    if not _is_read_here(kind, data):
        return None
    return ReadAlert(
        source=attributes["source"],
        id=attributes["id"],
        key=attributes["partitionkey"],
        sequence=attributes["sequence"],
        time=attributes["time"],
        severity=attributes["severitytext"].lower(),
        attributes=attributes,
        data=data,
    )


def _is_read_here(kind: Any, data: Mapping[str, Any]) -> bool:
    """Whether an event is an alert of the contract this package knows.

    Raises:
        InputDataError: it is an alert of another.
    """
    family, _, version = str(kind).rpartition(".v")
    if family != _FAMILY:
        return False
    if version != _VERSION:
        raise InputDataError(
            f"an alert is of type {str(kind)[:80]!r}, and this nae-monitor reads {EVENT_TYPE!r};"
            " upgrade whichever is older"
        )
    metadata = data.get("metadata")
    ocsf = metadata.get("version") if isinstance(metadata, dict) else None
    if isinstance(ocsf, str) and ocsf.split(".")[0] != OCSF_VERSION.split(".")[0]:
        raise InputDataError(
            f"an alert follows OCSF {ocsf[:20]!r}, and this nae-monitor reads {OCSF_VERSION};"
            " upgrade whichever is older"
        )
    return True


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # and nothing could write it again
