"""A recording or a replayed run as flat tables for other programs: CSV, JSON lines, Parquet.

Three tables: ``requests`` (one row a turn), ``activations`` (one row a chosen token, without its
vector) and ``findings``. Lists and maps become JSON text, so that all formats hold the same; CSV
quotes text that a spreadsheet would compute.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from nae_monitor.recording.findings import finding_to_json
from nae_monitor.recording.reader import Recording
from nae_monitor.recording.schema import REQUESTS, VECTOR, activations_schema
from nae_monitor.spreadsheet import harmless_cell

Format = Literal["csv", "json", "parquet"]
BATCH_ROWS = 2048
_FINDINGS = pa.schema(
    [
        ("request_id", pa.string()),
        ("position", pa.int64()),
        ("rule_id", pa.string()),
        ("rule_name", pa.string()),
        ("rule_version", pa.string()),
        ("title", pa.string()),
        ("severity", pa.string()),
        ("state", pa.string()),
        ("fve", pa.float64()),
        ("support", pa.float64()),
        ("risk_score", pa.int64()),
        ("tags", pa.string()),
        ("routes", pa.string()),
        ("undecided", pa.string()),
        ("spans", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    schema: Any
    rows: Callable[[], Iterator[Mapping[str, Any]]]


def export(run: Path | str, directory: Path | str, kind: Format) -> Mapping[Path, int]:
    """Write each table of a run as one file of ``directory``; rows by file.

    A file is there once it is whole; one of the same name is replaced. Holds a few thousand
    rows at a time.

    Raises:
        RecordingError: the run cannot be read.
        OSError: the directory cannot be written.
    """
    recording, place = Recording.open(run), Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    written: dict[Path, int] = {}
    for table in _tables(recording):
        path = place / f"{table.name}.{kind}"
        with _whole(path) as part:
            written[path] = _WRITERS[kind](part, table.schema, table.rows())
    return MappingProxyType(written)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _tables(recording: Recording) -> list[_Table]:
    activations = _flat(activations_schema(recording.d_model, "float16"))

    def requests() -> Iterator[Mapping[str, Any]]:
        for part in recording.request_parts:
            yield from part.table().to_pylist()

    return [
        _Table("requests", _flat(REQUESTS), requests),
        _Table("activations", activations, lambda: recording.activation_columns(activations.names)),
        _Table("findings", _FINDINGS, lambda: map(finding_to_json, recording.findings())),
    ]


def _flat(schema: Any) -> Any:
    """The schema without vectors, and with text where it nests."""
    return pa.schema(
        [
            (field.name, pa.string() if pa.types.is_nested(field.type) else field.type)
            for field in schema
            if field.name != VECTOR
        ]
    )


def _cell(value: Any) -> Any:
    if not isinstance(value, list | dict):
        return value
    is_map = bool(value) and isinstance(value, list) and isinstance(value[0], tuple)
    return json.dumps(dict(value) if is_map else value, ensure_ascii=False)


def _cells(rows: Iterable[Mapping[str, Any]], names: list[str]) -> Iterator[dict[str, Any]]:
    return ({name: _cell(row.get(name)) for name in names} for row in rows)


def _text(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="")


def _write_csv(path: Path, schema: Any, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with _text(path) as file:
        writer = csv.DictWriter(file, schema.names)
        writer.writeheader()
        for count, row in enumerate(_cells(rows, schema.names), start=1):  # noqa: B007
            writer.writerow({name: harmless_cell(cell) for name, cell in row.items()})
    return count


def _write_json(path: Path, schema: Any, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with _text(path) as file:
        for count, row in enumerate(_cells(rows, schema.names), start=1):  # noqa: B007
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_parquet(path: Path, schema: Any, rows: Iterable[Mapping[str, Any]]) -> int:
    count, cells = 0, _cells(rows, schema.names)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(cells, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


_WRITERS: Mapping[str, Callable[[Path, Any, Iterable[Mapping[str, Any]]], int]] = MappingProxyType(
    {"csv": _write_csv, "json": _write_json, "parquet": _write_parquet}
)
