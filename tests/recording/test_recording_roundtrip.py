"""Records in are records out, whatever they hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording_parts import clean_request, prompt_row, write_undecoded

from nae_monitor.recording import (
    Recording,
    RecordingWriter,
    RequestRecord,
    canonical_line,
    finding_from_json,
    finding_sort_key,
    finding_to_json,
    open_recordings,
    transcript_for,
)
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
    Span,
    TraceRef,
    Transcript,
    VerdictState,
)

D_MODEL = 6
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
count = st.integers(0, 2**40)
fraction = st.floats(-1e6, 1e6)
traces = st.builds(
    TraceRef, st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255)
)
requests = st.builds(
    Request,
    request_id=text,
    group_id=text,
    model=text,
    session_id=st.none() | text,
    tenant=st.none() | text,
    trace=st.none() | traces,
    started_unix_ns=count,
    attributes=st.dictionaries(text, text, max_size=3),
)
decodings = st.builds(
    Decoding,
    text=text,
    closed=st.booleans(),
    cosine=st.none() | fraction,
    fve=st.none() | fraction,
    rank=st.none() | count,
    bank_size=count,
    nla_id=text,
    tokens=count,
    seconds=fraction,
    support=st.none() | fraction,
    reused=st.booleans(),
)


def vectors(width: int, dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    bits = 16 if dtype is torch.float16 else 32
    floats = st.floats(width=bits, allow_nan=False)  # infinity included: a row is kept as it is
    return st.lists(floats, min_size=D_MODEL, max_size=D_MODEL).map(
        lambda values: torch.tensor(values, dtype=dtype)
    )


def activations(dtype: torch.dtype) -> st.SearchStrategy[Activation]:
    return st.builds(
        Activation,
        request=requests,
        position=count,
        token_id=st.integers(0, 2**31),
        token=text,
        phase=st.sampled_from(Phase),
        layer=st.integers(0, 200),
        vector=vectors(D_MODEL, dtype),
        reason=st.sampled_from(SampleReason),
        scores=st.dictionaries(text, fraction, max_size=3),
        captured_unix_ns=count,
    )


@st.composite
def request_records(draw: st.DrawFn) -> RequestRecord:
    prompt, output = draw(st.lists(text, max_size=4)), draw(st.lists(text, max_size=4))
    ids = draw(st.booleans())
    return RequestRecord(
        request=draw(requests),
        prompt_text=draw(st.none() | text),
        prompt_tokens=len(prompt),
        output_tokens=len(output),
        coverage=Coverage(*[draw(count) for _ in range(6)], draw(st.dictionaries(text, count))),
        state=draw(st.sampled_from(VerdictState)),
        reasons=tuple(draw(st.lists(text, max_size=2))),
        prompt_token_ids=tuple(range(len(prompt))) if ids else None,
        output_token_ids=tuple(range(len(output))) if ids else None,
        prompt_token_texts=tuple(prompt),
        output_token_texts=tuple(output),
        finished_unix_ns=draw(count),
    )


spans = st.builds(Span, text, text, count, count, text, st.none() | fraction)
findings = st.builds(
    Finding,
    request_id=st.text(max_size=8),  # lone surrogates too: JSON escapes carry them
    position=count,
    rule_id=text,
    rule_name=text,
    rule_version=text,
    title=text,
    severity=st.sampled_from(Severity),
    state=st.sampled_from(FindingState),
    spans=st.lists(spans, max_size=2).map(tuple),
    undecided=st.lists(text, max_size=2).map(tuple),
    fve=st.none() | fraction,
    tags=st.lists(text, max_size=2).map(tuple),
    risk_score=st.none() | st.integers(0, 100),
)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@settings(
    max_examples=25,
    deadline=None,
    # Hypothesis draws half-precision numbers and dictionary keys by rejection.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_activations_come_back_as_they_went_in(dtype: str, data: st.DataObject) -> None:
    strategy = activations(getattr(torch, dtype))
    rows = data.draw(
        st.lists(st.tuples(strategy, st.none() | decodings, st.none() | text), max_size=5)
    )
    rotate_rows = data.draw(st.integers(1, 3))
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "run"
        with RecordingWriter(
            path,
            manifest={"model": "m", "layer": 3},
            d_model=D_MODEL,
            vector_dtype=dtype,
            content="full",
            rotate_rows=rotate_rows,
        ) as writer:
            for row in rows:
                writer.write_activation(*row)
        recording = Recording.open(path)
        assert recording.complete
        read = list(recording.activations())
    assert len(read) == len(rows)
    for (activation, decoding, reason), got in zip(rows, read, strict=True):
        for name in Activation.__slots__:
            if name != "vector":
                assert getattr(got.activation, name) == getattr(activation, name)
        assert got.activation.vector.dtype is activation.vector.dtype
        assert torch.equal(got.activation.vector, activation.vector)
        assert (got.decoding, got.dropped_reason) == (decoding, reason)
        assert got.readable_decoding == decoding


@settings(max_examples=25, deadline=None)
@given(records=st.lists(request_records(), max_size=4))
def test_requests_come_back_as_they_went_in(records: list[RequestRecord]) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "run"
        with RecordingWriter(path, manifest={}, d_model=1, content="full") as writer:
            for record in records:
                writer.write_request(record)
        assert list(Recording.open(path).requests()) == records


@settings(max_examples=60, deadline=None)
@given(items=st.lists(findings, max_size=5))
def test_findings_come_back_as_they_went_in_and_lines_are_canonical(items: list[Finding]) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "run"
        with RecordingWriter(path, manifest={}, d_model=1, content="full") as writer:
            writer.write_findings(items)
        assert list(Recording.open(path).findings()) == items
        lines = (path / "findings.jsonl").read_text("ascii").splitlines()
    assert lines == [canonical_line(finding_to_json(item)) for item in items]
    assert [finding_from_json(finding_to_json(item), "here") for item in items] == items
    backwards = list(reversed(items))
    assert sorted(items, key=finding_sort_key) == sorted(backwards, key=finding_sort_key)


def test_a_lone_surrogate_is_recorded_as_the_replacement_character(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="full") as writer:
        writer.write_activation(prompt_row(torch.ones(1), token="a\ud800b"), None)
    (row,) = Recording.open(tmp_path / "run").activations()
    assert row.activation.token == "a\ufffdb"


def test_transcripts_of_a_recorded_request_end_at_the_judged_token() -> None:
    record = clean_request(2, 3, output_token_texts=("c", "d", "e"))
    assert transcript_for(record, 1) == Transcript("ab", "")
    assert transcript_for(record, 2) == Transcript("ab", "c")
    assert transcript_for(record, 4) == Transcript("ab", "cde")
    assert transcript_for(record, 5) == Transcript("ab", None)  # beyond what was recorded
    assert transcript_for(None, 1) == Transcript(None, None)


def test_token_lists_must_agree_with_their_counts() -> None:
    with pytest.raises(ValueError, match="prompt_token_ids has 1 entries"):
        clean_request(2, 0, prompt_token_ids=(1,))


def reference_file(path: Path, kind: pa.DataType, rows: int = 5) -> np.ndarray:
    """A file with the columns that the reference implementation's extraction stage writes."""
    values = np.random.default_rng(0).standard_normal((rows, D_MODEL)).astype(np.float32)
    table = pa.table(
        {
            "n_raw_tokens": pa.array(range(11, 11 + rows), pa.int64()),
            "detokenized_text_truncated": [f"text {i}" for i in range(rows)],
            "activation_vector": pa.array(values.tolist(), kind),
            "activation_layer": pa.array([20] * rows, pa.int64()),
            "doc_id": [f"doc:{i}" for i in range(rows)],
        }
    )
    pq.write_table(table, path, row_group_size=2)
    return values


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), D_MODEL), pa.list_(pa.float32())])
def test_parquet_of_the_reference_implementation_opens(tmp_path: Path, kind: pa.DataType) -> None:
    values = reference_file(tmp_path / "base.parquet", kind)
    recording = Recording.open(tmp_path / "base.parquet")
    rows = list(recording.activations())
    assert recording.d_model == D_MODEL
    assert np.array_equal(np.stack([row.activation.vector.numpy() for row in rows]), values)
    assert [row.activation.position for row in rows] == [10, 11, 12, 13, 14]
    assert {row.activation.layer for row in rows} == {20}
    assert rows[3].context_text == "text 3"
    assert rows[3].activation.request.request_id == "base:doc:3"
    assert [row.activation.position for row in recording.activation_parts[1].take([1])] == [13]


def test_a_parquet_file_with_nothing_but_vectors_opens(tmp_path: Path) -> None:
    kind = pa.list_(pa.float16(), 2)
    vectors_only = pa.table({"activation_vector": pa.array([[1.0, 2.0], [3.0, 4.0]], kind)})
    pq.write_table(vectors_only, tmp_path / "v.parquet")
    rows = list(Recording.open(tmp_path / "v.parquet").activations())
    assert [row.activation.request.request_id for row in rows] == ["v:0", "v:1"]
    assert rows[1].activation.vector.tolist() == [3.0, 4.0]


def test_our_files_open_the_way_the_reference_client_reads_them(tmp_path: Path) -> None:
    vector = torch.arange(D_MODEL, dtype=torch.float16)
    write_undecoded(tmp_path / "run", [vector], D_MODEL)
    file = pq.ParquetFile(tmp_path / "run" / "activations-00000.parquet")
    batch = next(file.iter_batches(batch_size=3, columns=["activation_vector"]))
    flat = batch.column("activation_vector").flatten().to_numpy(zero_copy_only=False)
    assert flat.astype(np.float32).reshape(len(batch), -1).tolist() == [vector.tolist()]


def test_a_directory_of_recordings_opens_as_all_of_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        RecordingWriter(tmp_path / name, manifest={}, d_model=1, content="none").close()
    assert [recording.path.name for recording in open_recordings([tmp_path])] == ["a", "b"]
