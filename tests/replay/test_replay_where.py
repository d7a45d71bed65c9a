"""Filters: read as a naive reader would, refused by their column, and never a false "clean"."""

from __future__ import annotations

import contextlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_scenario import SlowDecoder, WordJudge

from nae_monitor.errors import ConfigurationError
from nae_monitor.recording import Recording, RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    VerdictState,
)
from nae_monitor.replay import ReplayRun, replay
from nae_monitor.replay.selection import Selection
from nae_monitor.replay.where import parse_where

DAY_NS = 86_400 * 10**9
START_NS = int(datetime(2026, 10, 1, tzinfo=UTC).timestamp()) * 10**9
DECODING = Decoding("about weather", True, 0.9, 0.5, 1, 2, "nla", 1, 0.1)
TENANTS = ("acme", None, "b c")


def record(path: Path, requests: int = 6, rows: int = 4) -> Path:
    """Request i is of tenant i mod 3, of day i; even ones were found by rule "even"."""
    with RecordingWriter(path, manifest={"layer": 20}, d_model=16, content="full") as writer:
        for i in range(requests):
            began = START_NS + i * DAY_NS
            request = Request(f"r{i}", f"g{i}", "model-a", "s", TENANTS[i % 3], None, began)
            for position in range(rows):
                phase = Phase.PROMPT if position < 2 else Phase.COMPLETION
                reason, captured = SampleReason.EVERY_N, began + position
                activation = Activation(
                    request, position, 1, "t", phase, 20, torch.ones(16), reason,
                    captured_unix_ns=captured,
                )  # fmt: skip
                writer.write_activation(activation, DECODING)
            if i % 2 == 0:
                names = ("id-even", "even", "1", "Even", Severity.LOW, FindingState.MATCH)
                writer.write_findings([Finding(f"r{i}", 1, *names)])
            coverage = Coverage(rows, rows, rows, rows, rows, 0, {})
            writer.write_request(
                RequestRecord(request, None, 2, rows - 2, coverage, VerdictState.CLEAN)
            )
        idle = Request("idle", "idle", "model-a", None, "acme", None, START_NS)
        nothing = Coverage(4, 4, 0, 0, 0, 0, {})
        writer.write_request(RequestRecord(idle, None, 4, 0, nothing, VerdictState.CLEAN))
    return path


def places(live: Path, where: str) -> list[tuple[str, int]]:
    recording = Recording.open(live)
    selection = Selection(where, [recording])
    found = []
    for part in recording.activation_parts:
        mask, rows = selection.rows(0, part)
        found += [
            (row["request_id"], row["position"])
            for row, taken in zip(rows, mask, strict=True)
            if taken
        ]
    return sorted(found)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("where") / "live")


@pytest.mark.parametrize(
    ("where", "requests", "positions"),
    [
        ("tenant = acme", "03", "0123"),
        ("TENANT = 'b c'", "25", "0123"),
        ('tenant != "b c"', "03", "0123"),  # an unknown tenant is neither
        ("not tenant = acme", "25", "0123"),
        ("request in (r1, r4)", "14", "0123"),
        ("not request in (r1, r4)", "0235", "0123"),
        ("phase = prompt and request = r1", "1", "01"),
        ("phase=completion and position >= 3", "012345", "3"),
        ("layer = 20 and group = g2 or group=g3", "23", "0123"),
        ("layer = 20 and (group = g2 or group = g9)", "2", "0123"),
        ("time >= 2026-10-03 and time < 2026-10-04T02:00:00+02:00", "2", "0123"),
        ("time > '2026-10-01 00:00'", "012345", "0123"),
        ("rule = even", "024", "0123"),
        ("not rule = id-even", "135", "0123"),
        ("rule in (even, other) and session = s", "024", "0123"),
        ("rule = other", "", ""),
        ("model = model-b", "", ""),
    ],
)
def test_a_filter_lets_through_what_it_says(
    live: Path, where: str, requests: str, positions: str
) -> None:
    expected = [(f"r{r}", int(p)) for r in requests for p in positions]
    if where.startswith("time >"):
        expected = [place for place in expected if place != ("r0", 0) or ">=" in where]
    assert places(live, where) == expected


@pytest.mark.parametrize(
    ("where", "column", "message"),
    [
        ("", 1, "expected a field"),
        ("colour = red", 1, "one of: group, layer"),
        ("tenant < acme", 8, "expected one of = != or in"),
        ("tenant =", 9, "expected a value"),
        ("tenant = acme tenant = b", 15, "expected 'and', 'or' or the end"),
        ("(tenant = acme", 15, "expected '\\)'"),
        ("tenant in acme", 11, "expected '\\('"),
        ("position = 1.5", 12, "a whole number"),
        ("position = 99999999999", 12, "too large"),
        ("time > yesterday", 8, "a date or time"),
        ("phase = later", 9, "prompt or completion"),
        ("tenant = 'acme", 10, "cannot be read"),
        ("'tenant' = acme", 1, "expected a field"),
        ("not " * 60 + "layer = 1", 205, "nested deeper"),
        ("(" * 60, 52, "nested deeper"),
        (" " * 5000, 1, "longer than"),
        ("__import__('os')", 1, "expected a field"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_column(
    where: str, column: int, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        parse_where(where)
    assert refused.value.problems[0].where.column == column


@given(st.text(alphabet="tenant=!<>()'\", andornt12\n", max_size=40) | st.text(max_size=60))
def test_no_text_brings_the_reader_down(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert parse_where(text).expression is not None


# (text, what a naive reader says of a row: True, False or None for unknown)
atoms = st.sampled_from(
    [
        ("tenant = acme", lambda r: None if r["t"] is None else r["t"] == "acme"),
        ("tenant != 'b c'", lambda r: None if r["t"] is None else r["t"] != "b c"),
        ("position > 1", lambda r: r["p"] > 1),
        ("rule = even", lambda r: r["i"] % 2 == 0),
        ("request in (r0, r3)", lambda r: r["i"] in (0, 3)),
    ]
)


def both(kind: str, a: Any, b: Any) -> Any:
    def said(row: Any) -> bool | None:
        values = {a[1](row), b[1](row)}
        decides = kind == "or"
        if decides in values:
            return decides
        return None if None in values else not decides

    return f"({a[0]} {kind} {b[0]})", said


def negated(a: Any) -> Any:
    return f"not {a[0]}", lambda row: None if a[1](row) is None else not a[1](row)


filters = st.recursive(
    atoms,
    lambda inner: (
        st.builds(both, st.sampled_from(["and", "or"]), inner, inner) | st.builds(negated, inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(one=filters)
def test_filters_mean_what_three_valued_logic_says(live: Path, one: Any) -> None:
    rows = [{"i": i, "p": p, "t": TENANTS[i % 3]} for i in range(6) for p in range(4)]
    assert places(live, one[0]) == [(f"r{r['i']}", r["p"]) for r in rows if one[1](r) is True]


def run(live: Path, out: Path, where: str) -> tuple[ReplayRun, dict[str, RequestRecord]]:
    done = replay([live], out, decoder=SlowDecoder(), judge=WordJudge(), mode="live", where=where)
    return done, {r.request.request_id: r for r in Recording.open(out).requests()}


def test_only_what_was_asked_for_is_replayed(live: Path, tmp_path: Path) -> None:
    done, records = run(live, tmp_path / "run", "tenant = acme")
    assert (done.rows, done.judged, done.not_recorded) == (8, 8, 0)
    assert set(records) == {"r0", "r3", "idle"}
    assert {record.state for record in records.values()} == {VerdictState.CLEAN}
    assert Recording.open(tmp_path / "run").manifest["where"] == "tenant = acme"


def test_a_request_of_which_rows_were_left_out_is_never_clean(live: Path, tmp_path: Path) -> None:
    done, records = run(live, tmp_path / "run", "phase = completion")
    assert (done.rows, done.not_recorded) == (12, 0)
    assert set(records) == {f"r{i}" for i in range(6)}
    states = Counter(record.state for record in records.values())
    assert states == {VerdictState.UNDECIDED: 6}
    assert dict(records["r1"].coverage.dropped_tokens) == {"not_selected": 2}


def test_a_filter_reads_a_file_without_requests_too(tmp_path: Path) -> None:
    kind = pa.list_(pa.float32(), 16)
    table = pa.table(
        {
            "activation_vector": pa.array([[1.0] * 16] * 4, kind),
            "n_raw_tokens": [1, 2, 3, 4],
            "doc_id": ["a", "a", "b", "b"],
        }
    )
    pq.write_table(table, tmp_path / "v.parquet")
    done = replay(
        [tmp_path / "v.parquet"], tmp_path / "run", decoder=SlowDecoder(), judge=WordJudge(),
        where="request = v:b and position > 2",
    )  # fmt: skip
    assert done.rows == done.judged == 1
