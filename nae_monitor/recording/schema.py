"""Arrow schemas of the two tables, and the way from records to rows and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nae_monitor.recording.privacy import ContentFilter, encodable
from nae_monitor.recording.rows import WITHHELD_TOKEN_ID, RecordedActivation, RequestRecord
from nae_monitor.records import (
    EMPTY,
    Activation,
    Coverage,
    Decoding,
    Phase,
    Request,
    SampleReason,
    TraceRef,
    VerdictState,
)

VECTOR = "activation_vector"  # the name the reference implementation gives the column
VECTOR_TYPES: Mapping[str, Any] = MappingProxyType(
    {"float16": pa.float16(), "float32": pa.float32()}
)

_REQUEST_FIELDS = [
    pa.field("request_id", pa.string(), nullable=False),
    pa.field("group_id", pa.string(), nullable=False),
    pa.field("session_id", pa.string()),
    pa.field("tenant", pa.string()),
    pa.field("model", pa.string(), nullable=False),
    pa.field("trace_id", pa.string()),  # 32 hex digits
    pa.field("span_id", pa.string()),  # 16 hex digits
    pa.field("trace_flags", pa.int32()),
    pa.field("started_unix_ns", pa.int64(), nullable=False),
    pa.field("attributes", pa.map_(pa.string(), pa.string())),
]
_COVERAGE_COUNTS = (
    "seen_tokens",
    "screened_tokens",
    "sampled_tokens",
    "decoded_tokens",
    "judged_tokens",
    "cached_tokens",
)

REQUESTS = pa.schema(
    [
        *_REQUEST_FIELDS,
        pa.field("prompt_text", pa.string()),
        pa.field("output_text", pa.string()),
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int64())),
        pa.field("output_token_ids", pa.list_(pa.int64())),
        pa.field("prompt_token_texts", pa.list_(pa.string())),
        pa.field("output_token_texts", pa.list_(pa.string())),
        *[pa.field(name, pa.int64(), nullable=False) for name in _COVERAGE_COUNTS],
        pa.field("dropped_tokens", pa.map_(pa.string(), pa.int64())),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("reasons", pa.list_(pa.string())),
        pa.field("finished_unix_ns", pa.int64(), nullable=False),
    ]
)

_ACTIVATION_FIELDS = [
    *_REQUEST_FIELDS,
    pa.field("position", pa.int64(), nullable=False),
    pa.field("token_id", pa.int64()),
    pa.field("token", pa.string()),
    pa.field("phase", pa.string(), nullable=False),
    pa.field("layer", pa.int32(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("scores", pa.map_(pa.string(), pa.float64())),
    pa.field("captured_unix_ns", pa.int64(), nullable=False),
    pa.field("decoded", pa.bool_(), nullable=False),
    pa.field("explanation", pa.string()),
    pa.field("closed", pa.bool_()),
    pa.field("cosine", pa.float64()),
    pa.field("fve", pa.float64()),
    pa.field("rank", pa.int64()),
    pa.field("bank_size", pa.int64()),
    pa.field("nla_id", pa.string()),
    pa.field("decode_tokens", pa.int64()),
    pa.field("decode_seconds", pa.float64()),
    pa.field("support", pa.float64()),
    pa.field("reused", pa.bool_()),
    pa.field("dropped_reason", pa.string()),
]


def activations_schema(d_model: int, vector_dtype: str) -> Any:
    """The activations table: the vector column first, [d_model] of ``vector_dtype``."""
    vector = pa.field(VECTOR, pa.list_(VECTOR_TYPES[vector_dtype], d_model), nullable=False)
    return pa.schema([vector, *_ACTIVATION_FIELDS])


def _request_row(request: Request, content: ContentFilter) -> dict[str, Any]:
    trace = request.trace
    return {
        "request_id": encodable(request.request_id),
        "group_id": encodable(request.group_id),
        "session_id": None if request.session_id is None else encodable(request.session_id),
        "tenant": None if request.tenant is None else encodable(request.tenant),
        "model": request.model,
        "trace_id": f"{trace.trace_id:032x}" if trace else None,
        "span_id": f"{trace.span_id:016x}" if trace else None,
        "trace_flags": trace.trace_flags if trace else None,
        "started_unix_ns": request.started_unix_ns,
        "attributes": content.attributes(request.attributes),
    }


def _decoding_row(decoding: Decoding | None, content: ContentFilter) -> dict[str, Any]:
    if decoding is None:
        return {"decoded": False}
    return {
        "decoded": True,
        "explanation": content.text(decoding.text),
        "closed": decoding.closed,
        "cosine": decoding.cosine,
        "fve": decoding.fve,
        "rank": decoding.rank,
        "bank_size": decoding.bank_size,
        "nla_id": decoding.nla_id,
        "decode_tokens": decoding.tokens,
        "decode_seconds": decoding.seconds,
        "support": decoding.support,
        "reused": decoding.reused,
    }


def activation_row(
    activation: Activation,
    decoding: Decoding | None,
    dropped_reason: str | None,
    content: ContentFilter,
    decoded_content: ContentFilter,
) -> dict[str, Any]:
    """Every column but the vector; ``decoded_content`` is what the explanation goes through."""
    # A row copied from a recording without content has no token to keep or to hash.
    known = activation.token_id != WITHHELD_TOKEN_ID
    token_ids = content.token_ids([activation.token_id]) if known else None
    place = (activation.request.request_id, activation.position)
    return {
        **_request_row(activation.request, content),
        "position": int(activation.position),
        "token_id": token_ids[0] if token_ids else None,
        "token": content.token(activation.token, *place) if known else None,
        "phase": activation.phase.value,
        "layer": activation.layer,
        "reason": activation.reason.value,
        "scores": [(name, float(score)) for name, score in activation.scores.items()],
        "captured_unix_ns": activation.captured_unix_ns,
        **_decoding_row(decoding, decoded_content),
        "dropped_reason": dropped_reason,
    }


def activations_table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    """Rows whose ``activation_vector`` is a numpy array [d] as one Arrow table."""
    vector_type = schema.field(0).type
    flat = np.concatenate([row[VECTOR] for row in rows])
    elements = pa.array(flat, type=vector_type.value_type)
    vectors = pa.FixedSizeListArray.from_arrays(elements, type=vector_type)
    scalars = pa.Table.from_pylist(list(rows), schema=schema.remove(0))
    return scalars.add_column(0, schema.field(0), vectors)


def requests_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows of :func:`request_row` as one Arrow table."""
    return pa.Table.from_pylist(list(rows), schema=REQUESTS)


def request_row(record: RequestRecord, content: ContentFilter) -> dict[str, Any]:
    """One row of the requests table."""
    coverage = record.coverage
    return {
        **_request_row(record.request, content),
        "prompt_text": content.text(record.prompt_text),
        "output_text": content.text(record.output_text),
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "prompt_token_ids": content.token_ids(record.prompt_token_ids),
        "output_token_ids": content.token_ids(record.output_token_ids),
        "prompt_token_texts": content.tokens(record.prompt_token_texts),
        "output_token_texts": content.tokens(record.output_token_texts),
        **{name: getattr(coverage, name) for name in _COVERAGE_COUNTS},
        "dropped_tokens": list(coverage.dropped_tokens.items()),
        "verdict": record.state.value,
        "reasons": list(record.reasons),
        "finished_unix_ns": record.finished_unix_ns,
    }


def _request(row: Mapping[str, Any]) -> Request:
    trace = None
    if row["trace_id"] is not None:
        trace = TraceRef(int(row["trace_id"], 16), int(row["span_id"], 16), row["trace_flags"])
    attributes = row["attributes"]
    return Request(
        request_id=row["request_id"],
        group_id=row["group_id"],
        model=row["model"],
        session_id=row["session_id"],
        tenant=row["tenant"],
        trace=trace,
        started_unix_ns=row["started_unix_ns"],
        attributes=MappingProxyType(dict(attributes)) if attributes else EMPTY,
    )


def _decoding(row: Mapping[str, Any]) -> Decoding | None:
    if not row["decoded"]:
        return None
    return Decoding(
        text=row["explanation"] or "",
        closed=row["closed"],
        cosine=row["cosine"],
        fve=row["fve"],
        rank=row["rank"],
        bank_size=row["bank_size"],
        nla_id=row["nla_id"],
        tokens=row["decode_tokens"],
        seconds=row["decode_seconds"],
        support=row["support"],
        reused=row["reused"],
    )


def recorded_activation(
    row: Mapping[str, Any], vector: torch.Tensor, *, text_withheld: bool
) -> RecordedActivation:
    """One row and its vector [d] back as a record.

    Raises:
        KeyError, ValueError, TypeError: a value that no record can hold.
    """
    activation = Activation(
        request=_request(row),
        position=row["position"],
        token_id=WITHHELD_TOKEN_ID if row["token_id"] is None else row["token_id"],
        token="" if text_withheld else row["token"] or "",
        phase=Phase(row["phase"]),
        layer=row["layer"],
        vector=vector,
        reason=SampleReason(row["reason"]),
        scores=MappingProxyType(dict(row["scores"] or ())),
        captured_unix_ns=row["captured_unix_ns"],
    )
    return RecordedActivation(activation, _decoding(row), row["dropped_reason"], text_withheld)


def recorded_request(row: Mapping[str, Any], *, text_withheld: bool) -> RequestRecord:
    """One row of the requests table back as a record; errors as :func:`recorded_activation`."""
    coverage = Coverage(
        **{name: row[name] for name in _COVERAGE_COUNTS},
        dropped_tokens=MappingProxyType(dict(row["dropped_tokens"] or ())),
    )
    tokens = {
        name: None if row[name] is None else tuple(row[name])
        for name in (
            "prompt_token_ids",
            "output_token_ids",
            "prompt_token_texts",
            "output_token_texts",
        )
    }
    return RequestRecord(
        request=_request(row),
        prompt_text=None if text_withheld else row["prompt_text"],
        prompt_tokens=row["prompt_tokens"],
        output_tokens=row["output_tokens"],
        coverage=coverage,
        state=VerdictState(row["verdict"]),
        reasons=tuple(row["reasons"] or ()),
        finished_unix_ns=row["finished_unix_ns"],
        **tokens,
    )


def vectors_of(column: Any, d_model: int) -> Any:
    """The vector column of a table or batch as a numpy array [n, d]; ValueError if ragged."""
    chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = chunk.flatten().to_numpy(zero_copy_only=False)
    if flat.size != len(chunk) * d_model or not np.issubdtype(flat.dtype, np.floating):
        raise ValueError(f"{VECTOR} does not hold {d_model} numbers in every row")
    return flat.reshape(len(chunk), d_model)
