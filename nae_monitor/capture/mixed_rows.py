"""Which rows of a mixed pass belong to which request, position and token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nae_monitor.capture.sink import Sink
from nae_monitor.host_copy import to_device
from nae_monitor.records import Phase, Request, RowBatch


@dataclass(eq=False, slots=True)
class MixedRows:
    """Rows of one pass that are wanted; the lists run side by side, one entry a row."""

    total_rows: int = 0  # of the pass, wanted or not
    requests: list[Request] = field(default_factory=list)
    request_index: list[int] = field(default_factory=list)
    flat: list[int] = field(default_factory=list)  # row of the pass, from 0
    positions: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    all_token_ids: list[int] = field(default_factory=list)  # filled for a check only
    all_positions: list[int] = field(default_factory=list)
    checked: bool = True

    def __len__(self) -> int:
        return len(self.flat)

    def batch(self, hidden: torch.Tensor, layer: int) -> RowBatch:
        """The rows with their vectors, copied out of ``hidden`` ``[total_rows, d]``."""
        if len(self) == self.total_rows:
            vectors = hidden.clone()
        else:
            vectors = hidden.index_select(
                0, to_device(torch.tensor(self.flat, device="cpu"), hidden.device)
            )
        return RowBatch(
            requests=tuple(self.requests),
            request_index=tuple(self.request_index),
            positions=tuple(self.positions),
            token_ids=tuple(self.token_ids),
            phases=tuple(self.phases),
            layer=layer,
            vectors=vectors,
        )

    def by_request(self) -> Mapping[str, int]:
        """How many rows each request has."""
        counts = Counter(self.request_index)
        return {self.requests[index].request_id: count for index, count in counts.items()}


def plan_rows(batch: Sequence[Any], tracks: Sequence[Any], sink: Sink, *, check: bool) -> MixedRows:
    """Count every token of a pass as seen, and pick the rows that the settings ask for.

    Positions that were computed before (a request that was put off and starts again) are left
    out. A request that starts behind its first position shares a prefix with another one: those
    tokens are counted as cached; as dropped where the watch began after the request.

    Args:
        batch: transformers' ``FutureRequestState``, in the order of the pass; their
            ``position_offset`` already includes the pass.
        tracks: one for each.
        sink: its settings and counters.
        check: also list every token and position of the pass.
    """
    rows = MixedRows(checked=not check)
    seen: Counter[str] = Counter()
    for future, track in zip(batch, tracks, strict=True):
        state, count = future.state, future.query_length
        start = state.position_offset - count
        request_id = track.request.request_id
        if start > track.next_position:
            gap = start - track.next_position
            reason = "dropped.before_watch" if track.before_watch else "tokens.cached"
            seen[request_id] += gap
            sink.health.count(reason, gap, request_id=request_id)
        first = max(start, track.next_position)
        seen[request_id] += max(0, start + count - first)
        track.next_position = max(track.next_position, start + count)
        if check:
            rows.all_token_ids += _tokens(state, start, start + count)
            rows.all_positions += range(start, start + count)
        _add(rows, track, first, start, count, sink)
        rows.total_rows += count
    sink.health.count_each("tokens.seen", {name: n for name, n in seen.items() if n})
    return rows


def _add(rows: MixedRows, track: Any, first: int, start: int, count: int, sink: Sink) -> None:
    """Add the rows ``first`` to ``start + count`` of one request that are wanted."""
    settings, prompt = sink.settings, track.prompt_tokens
    end = start + count
    low = max(first, settings.min_position)
    if Phase.PROMPT.value not in settings.phases:
        low = max(low, prompt)
    high = end if Phase.COMPLETION.value in settings.phases else min(end, prompt)
    wanted = max(0, high - low)
    request_id = track.request.request_id
    if end - first > wanted:
        excluded = max(0, end - first) - wanted
        sink.health.count("tokens.excluded", excluded, request_id=request_id)
    if not wanted:
        return
    if track.muted:
        sink.health.count("dropped.listener_failed", wanted, request_id=request_id)
        return
    rows.requests.append(track.request)
    rows.request_index += [len(rows.requests) - 1] * wanted
    rows.flat += range(rows.total_rows + low - start, rows.total_rows + high - start)
    rows.positions += range(low, high)
    rows.token_ids += _tokens(track.state, low, high)
    rows.phases += [Phase.PROMPT if p < prompt else Phase.COMPLETION for p in range(low, high)]


def _tokens(state: Any, start: int, end: int) -> list[int]:
    known = len(state.initial_tokens)
    if start >= known:
        tokens: list[int] = state.generated_tokens[start - known : end - known]
    elif end <= known:
        tokens = state.initial_tokens[start:end]
    else:
        tokens = (state.initial_tokens + state.generated_tokens)[start:end]
    if len(tokens) != end - start:
        raise ValueError("a pass holds tokens that are not known yet")
    return tokens
