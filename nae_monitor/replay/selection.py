"""A filter put to recordings: which rows, and which requests without rows, are replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nae_monitor.recording import Recording, RequestRecord
from nae_monitor.recording.parts import ActivationPart
from nae_monitor.replay.where import parse_where

_TEXTS = {
    "request": "request_id",
    "group": "group_id",
    "session": "session_id",
    "tenant": "tenant",
    "model": "model",
    "phase": "phase",
}
COLUMNS = (*_TEXTS.values(), "position", "layer", "captured_unix_ns", "started_unix_ns", "decoded")


class Selection:
    """Rows that a filter lets through.

    Raises:
        ConfigurationError: a filter that cannot be read.
        RecordingError: findings that cannot be read, where the filter asks for rules.
    """

    def __init__(self, where: str, recordings: Sequence[Recording]) -> None:
        self._filter = parse_where(where)
        self._found = [_requests_by_rule(one, self._filter.rules) for one in recordings]
        self._schema = pa.schema(
            [
                *((name, pa.string()) for name in _TEXTS),
                *((name, pa.int64()) for name in ("position", "layer", "time")),
                *((f"rule {rule}", pa.bool_()) for rule in sorted(set(self._filter.rules))),
                ("row", pa.int64()),
            ]
        )

    def rows(self, recording: int, part: ActivationPart) -> tuple[Any, list[dict[str, Any]]]:
        """Whether each row of a part is let through, [rows], and the rows as plain values.

        ``recording`` is the index of the recording that the part is of.
        """
        rows = list(part.plain(COLUMNS))
        return self._mask(recording, rows), rows

    def takes(self, recording: int, record: RequestRecord) -> bool:
        """Whether a request of which no row was recorded is let through."""
        request = record.request
        row = {name: getattr(request, column, None) for name, column in _TEXTS.items()}
        plain = {_TEXTS[name]: value for name, value in row.items()}
        times = {"started_unix_ns": request.started_unix_ns, "captured_unix_ns": 0}
        empty = {"position": None, "layer": None}
        return bool(self._mask(recording, [{**plain, **empty, **times}])[0])

    def _mask(self, recording: int, rows: Sequence[Mapping[str, Any]]) -> Any:
        found = self._found[recording]
        table = pa.Table.from_pylist(
            [
                {
                    **{name: row[column] for name, column in _TEXTS.items()},
                    "position": row["position"],
                    "layer": row["layer"],
                    "time": row["captured_unix_ns"] or row["started_unix_ns"] or None,
                    **{f"rule {name}": row["request_id"] in ids for name, ids in found.items()},
                    "row": number,
                }
                for number, row in enumerate(rows)
            ],
            schema=self._schema,
        )
        mask = np.zeros(len(rows), bool)
        mask[table.filter(self._filter.expression).column("row").to_numpy()] = True
        return mask


def _requests_by_rule(recording: Recording, rules: Sequence[str]) -> dict[str, set[str]]:
    """The ids of the requests in which each rule, by name or id, found something."""
    found: dict[str, set[str]] = {rule: set() for rule in rules}
    if found:
        for finding in recording.findings():
            for name in {finding.rule_name, finding.rule_id} & found.keys():
                found[name].add(finding.request_id)
    return found
