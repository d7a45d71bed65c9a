"""What the report shows, gathered from a run directory without reading a vector."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeGuard

from nae_monitor.recording import Recording, RequestRecord, latest_stops
from nae_monitor.records import Finding, FindingState, Severity, Stop, VerdictState
from nae_monitor.replay.report_spend import Spend

MAX_TOKENS = 400_000  # of conversations on one page; alerts come first, the rest is counted
MAX_SCORES = 4  # of a row on the page
SPECIAL = re.compile(
    r"<\|[^<>|]{1,40}\|>|<(s|/s|bos|eos|pad|unk|start_of_turn|end_of_turn)>|\[/?INST\]"
)
_ROW_COLUMNS = (
    "request_id",
    "position",
    "token",
    "phase",
    "reason",
    "decoded",
    "explanation",
    "closed",
    "cosine",
    "fve",
    "rank",
    "bank_size",
    "support",
    "reused",
    "dropped_reason",
    "scores",
    "captured_unix_ns",
    "decode_tokens",
    "decode_seconds",
)


@dataclass(slots=True)
class Conversation:
    """One request on the page; ``record`` is None where it never finished."""

    request_id: str
    record: RequestRecord | None
    findings: list[Finding] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def worst(self) -> Severity | None:
        """The highest severity among matches."""
        return worst_match(self.findings)

    @property
    def state(self) -> str:
        """The verdict, or "unfinished"."""
        return "unfinished" if self.record is None else self.record.state.value


@dataclass(frozen=True, slots=True)
class Known:
    """What the list of alerts says of a request, whether or not it is on the page."""

    tenant: str
    model: str
    state: str
    started_unix_ns: int


@dataclass(slots=True)
class RunData:
    """A run as the page needs it."""

    recording: Recording
    conversations: list[Conversation]  # most severe first
    omitted: int  # conversations beyond MAX_TOKENS, finished or not
    findings: list[Finding]
    verdicts: Counter[str]
    coverage: Counter[str]
    dropped: Counter[str]
    fve: list[float]
    fve_unknown: int
    stops: list[Stop] = field(default_factory=list)  # what was last known of each
    spend: Spend = field(default_factory=Spend)
    starts_unix_ns: list[int] = field(default_factory=list)  # of every finished request
    tenants: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    known: dict[str, Known] = field(default_factory=dict)  # requests with findings, by id
    hit_times: dict[tuple[str, int], int] = field(default_factory=dict)  # Unix ns of matched rows
    strongest: list[float] = field(default_factory=list)  # the largest score of each scored row


def worst_match(findings: Iterable[Finding]) -> Severity | None:
    """The highest severity of the findings that matched."""
    matched = [f.severity for f in findings if f.state is FindingState.MATCH]
    return max(matched, key=lambda severity: severity.rank, default=None)


def gather(recording: Recording, max_tokens: int = MAX_TOKENS) -> RunData:
    """Read findings, then requests, then the rows of the conversations that fit the page.

    Raises:
        RecordingError: any file that cannot be read.
    """
    findings = list(recording.findings())
    by_request: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_request[finding.request_id].append(finding)
    run = RunData(recording, [], 0, findings, Counter(), Counter(), Counter(), [], 0)
    run.stops = latest_stops(recording.stops())
    shown = _choose(run, by_request, max_tokens)
    for record in recording.requests():
        _count(run, record)
        if record.request.request_id in by_request:
            run.known[record.request.request_id] = _known(record)
        if record.request.request_id in shown:
            shown[record.request.request_id].record = record
    _add_rows(run, shown, by_request, max_tokens)
    run.conversations = sorted(shown.values(), key=_most_severe_first)
    for conversation in run.conversations:
        conversation.rows.sort(key=lambda row: row["position"])
        if conversation.record is None:
            run.verdicts["unfinished"] += 1
    return run


class _Unfinished:
    """As many rows of requests without a record as fit, those of the most severe ones."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._rows: dict[tuple[int, bool], list[Mapping[str, Any]]] = defaultdict(list)
        self.names: set[str] = set()  # of all, whether or not they fit

    def add(self, row: Mapping[str, Any], findings: Sequence[Finding]) -> None:
        """Take a row; the last one of the least severe goes where there is no room for it."""
        self.names.add(row["request_id"])
        self._rows[_rank(worst_match(findings)), bool(findings)].append(row)
        self._room -= 1
        if self._room < 0:
            least = min(self._rows)
            self._rows[least].pop()
            self._room += 1
            if not self._rows[least]:
                del self._rows[least]

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Those that fit."""
        return chain.from_iterable(self._rows.values())


def _choose(
    run: RunData, by_request: Mapping[str, Sequence[Finding]], max_tokens: int
) -> dict[str, Conversation]:
    """The conversations that fit, alerting ones first, without holding the others' text."""
    sizes: dict[str, tuple[int, str]] = {}
    for part in run.recording.request_parts:
        columns = ["request_id", "prompt_tokens", "output_tokens", "verdict"]
        for row in part.table(columns).to_pylist():
            tokens = row["prompt_tokens"] + row["output_tokens"]
            sizes[row["request_id"]] = (tokens, row["verdict"])
    order = sorted(
        sizes,
        key=lambda name: (
            -_rank(worst_match(by_request.get(name, ()))),
            sizes[name][1] == VerdictState.CLEAN,
        ),
    )
    chosen: dict[str, Conversation] = {}
    left = max_tokens
    for name in order:
        left -= sizes[name][0]
        if left < 0 and chosen:
            break
        chosen[name] = Conversation(name, None, list(by_request.get(name, ())))
    run.omitted = len(sizes) - len(chosen)
    return chosen


def _count(run: RunData, record: RequestRecord) -> None:
    run.verdicts[record.state.value] += 1
    for name in ("seen", "screened", "sampled", "decoded", "judged", "cached"):
        run.coverage[name] += getattr(record.coverage, f"{name}_tokens")
    run.dropped.update(record.coverage.dropped_tokens)
    run.starts_unix_ns.append(record.request.started_unix_ns)
    run.models.add(record.request.model)
    if record.request.tenant:
        run.tenants.add(record.request.tenant)


def _known(record: RequestRecord) -> Known:
    request = record.request
    return Known(request.tenant or "", request.model, record.state.value, request.started_unix_ns)


def _add_rows(
    run: RunData,
    shown: dict[str, Conversation],
    by_request: Mapping[str, list[Finding]],
    room: int,
) -> None:
    """Give conversations their rows; ``room`` rows of requests that never finished fit.

    Requests of which none fits are counted as unfinished and as omitted.
    """
    finished = {name for part in run.recording.request_parts for name in _ids(part)}
    hits = {(f.request_id, f.position) for f in run.findings if f.state is FindingState.MATCH}
    unfinished = _Unfinished(room)
    for row in run.recording.activation_columns(_ROW_COLUMNS):
        _count_row(run, row, hits)
        if run.recording.text_withheld:  # what the columns hold then are hashes, of no use here
            row = {**row, "token": None, "explanation": None}
        name = row["request_id"]
        if name not in finished:
            unfinished.add(row, by_request.get(name, ()))
        elif name in shown:
            shown[name].rows.append(row)
    for kept in unfinished.rows():
        name = kept["request_id"]
        shown.setdefault(name, Conversation(name, None, list(by_request.get(name, ()))))
        shown[name].rows.append(kept)
    left_out = len(unfinished.names - shown.keys())
    run.omitted += left_out
    run.verdicts["unfinished"] += left_out


def _count_row(run: RunData, row: Mapping[str, Any], hits: Set[tuple[str, int]]) -> None:
    place = (row["request_id"], row["position"])
    run.spend.add(row, place in hits)
    if place in hits and row["captured_unix_ns"]:
        run.hit_times[place] = row["captured_unix_ns"]
    if scores := shown_scores(row):
        run.strongest.append(scores[0][1])
    if not row["decoded"]:
        return
    if not is_finite(row["fve"]):
        run.fve_unknown += 1
    else:
        run.fve.append(row["fve"])


def shown_scores(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The largest scores of a row with their directions, largest first; none that is no number."""
    known = [(name, score) for name, score in row["scores"] or () if is_finite(score)]
    return heapq.nlargest(MAX_SCORES, known, key=lambda item: item[1])


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether a figure that comes from a file is one."""
    return value is not None and math.isfinite(value)


def _ids(part: Any) -> list[str]:
    return list(part.table(["request_id"]).column(0).to_pylist())


def _rank(severity: Severity | None) -> int:
    return -1 if severity is None else severity.rank


def _most_severe_first(conversation: Conversation) -> tuple[int, bool, int, str]:
    started = conversation.record.request.started_unix_ns if conversation.record else 0
    clean = conversation.state == VerdictState.CLEAN
    return (-_rank(conversation.worst), clean, started, conversation.request_id)


def special_positions(conversation: Conversation, special_ids: frozenset[int]) -> list[int]:
    """Positions of chat-template tokens, by id where the manifest lists them, else by look."""
    record = conversation.record
    if record is None:
        return []
    texts = (*(record.prompt_token_texts or ()), *(record.output_token_texts or ()))
    ids = (*(record.prompt_token_ids or ()), *(record.output_token_ids or ()))
    if special_ids and ids:
        return [position for position, token in enumerate(ids) if token in special_ids]
    return [i for i, text in enumerate(texts) if SPECIAL.fullmatch(text.strip())]
