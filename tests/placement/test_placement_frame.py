"""Frames: what was said is what is read, and no bytes whatever do harm."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.placement.contents import Ledger
from nae_monitor.placement.frame import (
    MAX_BODY_BYTES,
    PREFIX,
    Frame,
    FrameError,
    Kind,
    pack,
    unpack,
)
from nae_monitor.placement.greetings import Hello, Welcome, read_reason
from nae_monitor.placement.orders import Outcome, RaiseSampling, StopTurn
from nae_monitor.placement.turns import Begin, End, Progress, Rows, Stopped
from nae_monitor.records import (
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
    StopOutcome,
    TraceRef,
)

READERS: dict[Kind, Any] = {
    Kind.HELLO: Hello.read,
    Kind.WELCOME: Welcome.read,
    Kind.REFUSED: read_reason,
    Kind.BEGIN: Begin.read,
    Kind.ROWS: Rows.read,
    Kind.END: End.read,
    Kind.OUTCOME: Outcome.read,
    Kind.STOP: StopTurn.read,
    Kind.RAISE: RaiseSampling.read,
}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.integers(0, 2**31 - 1)
ledgers = st.dictionaries(
    st.sampled_from(["tokens.seen", "tokens.judged", "dropped.queue_full"]), st.integers(0, 2**40)
)
requests = st.builds(
    Request,
    request_id=texts,
    group_id=texts,
    model=texts,
    session_id=st.none() | texts,
    tenant=st.none() | texts,
    trace=st.none()
    | st.builds(
        TraceRef, st.integers(0, 2**128 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255)
    ),
    started_unix_ns=st.integers(0, 2**62),
    attributes=st.dictionaries(texts, texts, max_size=3),
)
progress = st.builds(
    Progress, st.integers(0, 2**31), st.lists(ids, max_size=5).map(tuple), st.booleans()
)
findings = st.builds(
    Finding,
    request_id=texts,
    position=ids,
    rule_id=texts,
    rule_name=texts,
    rule_version=texts,
    title=texts,
    severity=st.sampled_from(Severity),
    state=st.sampled_from([FindingState.MATCH, FindingState.UNDECIDED]),
    spans=st.lists(
        st.builds(Span, texts, texts, ids, ids, texts, st.none() | st.floats(0, 1)), max_size=2
    ).map(tuple),
    undecided=st.lists(texts, max_size=2).map(tuple),
    fve=st.none() | st.floats(-1, 1),
    tags=st.lists(texts, max_size=2).map(tuple),
    risk_score=st.none() | st.integers(0, 100),
)


def sent(kind: Kind, message: Any) -> Frame:
    """A message over the wire."""
    body = message.body() if hasattr(message, "body") else b""
    return unpack(pack(kind, message.header(), body))


def rows(n: int = 3, width: int = 4, dtype: torch.dtype = torch.float16) -> Rows:
    return Rows(
        turn=7,
        progress=Progress(2, (5, 6), True),
        layer=2,
        positions=list(range(n)),
        token_ids=list(range(n)),
        phases=[Phase.PROMPT] * n,
        reasons=[SampleReason.RANDOM] * n,
        scores=[{"direction": 0.5}] * n,
        captured_unix_ns=[9] * n,
        vectors=torch.randn(n, width).to(dtype),
    )


@given(st.integers(0, 2**62), requests, st.lists(ids, max_size=9).map(tuple))
def test_the_beginning_of_a_turn_is_read_as_it_was_sent(
    turn: int, request: Request, prompt_ids: tuple[int, ...]
) -> None:
    begin = Begin(turn, request, prompt_ids)
    assert Begin.read(sent(Kind.BEGIN, begin)) == begin


@given(progress, ledgers, st.sampled_from([None, StopOutcome.BLOCKED, StopOutcome.REFUSED]))
def test_the_end_of_a_turn_is_read_as_it_was_sent(
    some: Progress, ledger: Ledger, outcome: StopOutcome | None
) -> None:
    end = End(3, some, 99, True, {"it was lost": 2}, ledger, Stopped(True, outcome, (9, 4)))
    assert End.read(sent(Kind.END, end)) == end


@given(st.lists(findings, max_size=4).map(tuple), ledgers)
def test_an_outcome_is_read_as_it_was_sent(found: tuple[Finding, ...], ledger: Ledger) -> None:
    outcome = Outcome(4, found, {"because": 1}, ledger)
    assert Outcome.read(sent(Kind.OUTCOME, outcome)) == outcome


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_vectors_arrive_bit_for_bit(dtype: torch.dtype) -> None:
    one = rows(dtype=dtype)
    one.vectors[0, 0] = math.nan  # the decode side says what is wrong with it
    read = Rows.read(sent(Kind.ROWS, one))
    assert read.vectors.dtype == dtype
    assert read.vectors.numpy().tobytes() == one.vectors.numpy().tobytes()
    assert (read.progress, read.scores) == (one.progress, one.scores)


def test_a_score_that_is_no_number_is_left_out() -> None:
    one = rows(1)
    one.scores[0] = {"a": math.inf, "b": 1.0}  # type: ignore[index]
    assert Rows.read(sent(Kind.ROWS, one)).scores == [{"b": 1.0}]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_a_frame_error(data: bytes) -> None:
    try:
        unpack(data)
    except FrameError:
        return
    assert len(data) >= PREFIX.size


VALID = [
    pack(Kind.HELLO, Hello("p", "m", 2, 4).header()),
    pack(Kind.WELCOME, Welcome("w", "nla").header()),
    pack(Kind.BEGIN, *(lambda b: (b.header(), b.body()))(Begin(1, Request("r", "r", "m"), (1, 2)))),
    pack(Kind.ROWS, *(lambda r: (r.header(), r.body()))(rows())),
    pack(
        Kind.END,
        *(lambda e: (e.header(), e.body()))(
            End(1, Progress(0, (1,), True), 9, True, {}, {}, Stopped(False, None, None))
        ),
    ),
    pack(Kind.OUTCOME, Outcome(1, (), {}, {}).header()),
    pack(Kind.STOP, StopTurn(1, 2, 3).header()),
    pack(Kind.RAISE, RaiseSampling("request", "r", 0.5, 9).header()),
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def read(data: bytes) -> None:
    frame = unpack(data)
    if frame.kind in READERS:
        READERS[frame.kind](frame)


@settings(max_examples=400)
@given(st.sampled_from(VALID), st.data())
def test_a_frame_with_changed_bytes_is_read_or_refused(valid: bytes, data: st.DataObject) -> None:
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(changed), data.draw(st.integers(0, len(changed)))]))
    try:
        read(bytes(changed[:end]))
    except FrameError:
        return


@settings(max_examples=400)
@given(st.sampled_from(VALID), st.data())
def test_a_header_with_changed_values_is_read_or_refused(valid: bytes, data: st.DataObject) -> None:
    frame = unpack(valid)
    header = dict(frame.header)
    for key in data.draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=2)):
        header[key] = data.draw(values)
    text = json.dumps(header).encode("ascii")  # also NaN and Infinity, which are not JSON
    prefix = PREFIX.pack(b"NAEF", 1, frame.kind, 0, 0, len(text), len(frame.body))
    try:
        read(prefix + text + bytes(frame.body))
    except FrameError:
        return


def test_lengths_that_claim_more_than_there_is_allocate_nothing() -> None:
    header = {**rows(1, 1).header(), "rows": 1024, "d_model": 65_536}
    with pytest.raises(FrameError, match=r"1024 items|as long as"):
        Rows.read(unpack(pack(Kind.ROWS, header, b"\0" * 20)))
    with pytest.raises(FrameError, match="fewer token ids"):
        Begin.read(
            unpack(
                pack(
                    Kind.BEGIN,
                    {**Begin(1, Request("r", "r", "m"), ()).header(), "prompt_tokens": 2**40},
                )
            )
        )


def test_a_header_of_brackets_without_end_is_refused() -> None:
    text = b"[" * 500_000
    with pytest.raises(FrameError):
        unpack(PREFIX.pack(b"NAEF", 1, Kind.BEAT, 0, 0, len(text), 0) + text)


def test_what_is_too_long_for_a_frame_is_refused_by_its_sender() -> None:
    with pytest.raises(FrameError, match="too long"):
        pack(Kind.ROWS, {}, b"\0" * (MAX_BODY_BYTES + 1))


def test_a_ledger_takes_no_names_but_counters_of_tokens() -> None:
    header = Outcome(1, (), {}, {"evil{label}": 1}).header()
    with pytest.raises(FrameError, match="no counter's"):
        Outcome.read(unpack(pack(Kind.OUTCOME, header)))


def test_findings_beyond_a_frame_become_a_loss_and_matches_are_told_first() -> None:
    def finding(state: FindingState) -> Finding:
        return Finding("r", 1, "rule", "rule", "1", "t" * 1000, Severity.HIGH, state)

    found = (*[finding(FindingState.UNDECIDED)] * 9, finding(FindingState.MATCH))
    told = Outcome(1, found, {}, {}).within(5_000)
    assert told.findings[0].state is FindingState.MATCH
    assert told.losses == {"findings were too many to tell": 10 - len(told.findings)}
