"""The frozen records that stages exchange; stages know these and never each other.

Units are in the names. Positions count tokens from 0 at the first real (not padding) token of a
sequence, prompt and completion in one row. Records that hold tensors compare by identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import torch

EMPTY: Mapping[str, str] = MappingProxyType({})


class Phase(StrEnum):
    """Which part of the conversation a token belongs to."""

    PROMPT = "prompt"
    COMPLETION = "completion"
    TOOL = "tool"  # what a tool was given or gave back; for a source of rows that can tell it apart


class Severity(StrEnum):
    """Severity of a rule, lowest first in :attr:`rank`."""

    INFORMATIONAL = "informational"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 (informational) to 4 (critical)."""
        return _RANKS[self]


_RANKS = {severity: rank for rank, severity in enumerate(Severity)}


class SampleReason(StrEnum):
    """Why a row was chosen for decoding."""

    RANDOM = "random"  # the reserved share: unbiased rates and drift
    EVERY_N = "every_n"
    SCORE = "score"
    NEIGHBOUR = "neighbour"
    RESAMPLE = "resample"
    RAISED = "raised"  # a rule's hit asked for more of what follows it
    REPLAY = "replay"


class FindingState(StrEnum):
    """A rule's answer for one decoding. ``NO_MATCH`` is never made into a finding."""

    MATCH = "match"
    UNDECIDED = "undecided"  # an input was missing: never the same as no match
    NO_MATCH = "no_match"


class StopOutcome(StrEnum):
    """What came of a rule's wish to end the generation it matched in."""

    WOULD_BLOCK = "would_block"  # in shadow, or over the limit of stops
    REQUESTED = "requested"  # ordered, and nothing is known of it yet
    BLOCKED = "blocked"  # the sequence was ended
    TOO_LATE = "too_late"  # it had ended by itself before the stop reached it
    REFUSED = "refused"  # the host said that it does not end it
    UNKNOWN = "unknown"  # ordered; the generation is over, and nobody said why it ended


class VerdictState(StrEnum):
    """What the monitor says of a request."""

    ALERT = "alert"
    CLEAN = "clean"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class TraceRef:
    """The W3C identity of the span a request ran under; valid after that span ended."""

    trace_id: int  # 128 bit
    span_id: int  # 64 bit
    trace_flags: int  # bit 0: sampled


@dataclass(frozen=True, slots=True)
class Request:
    """One generated sequence. ``group_id`` is the id the caller gave; a batch shares it."""

    request_id: str  # unique per sequence: "r1", or "r1#0", "r1#1" in a batch
    group_id: str
    model: str
    session_id: str | None = None
    tenant: str | None = None
    trace: TraceRef | None = None
    started_unix_ns: int = 0
    attributes: Mapping[str, str] = field(default_factory=lambda: EMPTY)  # further request.KEY


@dataclass(frozen=True, eq=False, slots=True)
class RowBatch:
    """The residual-stream rows of one forward pass, still on the target's device.

    Row i belongs to ``requests[request_index[i]]``; the lists all have length n.
    """

    requests: tuple[Request, ...]
    request_index: tuple[int, ...]
    positions: tuple[int, ...]  # tokens, from 0
    token_ids: tuple[int, ...]
    phases: tuple[Phase, ...]
    layer: int  # K: rows are hidden_states[K]
    vectors: torch.Tensor  # [n, d], the target's dtype and device

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of a :class:`RowBatch` that the screen bought a decode for."""

    row: int  # index into the batch
    reason: SampleReason
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, eq=False, slots=True)
class Activation:
    """One chosen row on the CPU, with everything needed to decode and judge it."""

    request: Request
    position: int  # tokens, from 0
    token_id: int
    token: str
    phase: Phase
    layer: int
    vector: torch.Tensor  # [d], float16 (default) or float32, CPU
    reason: SampleReason
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    captured_unix_ns: int = 0

    @property
    def norm(self) -> float:
        """Euclidean norm in float32."""
        return float(torch.linalg.vector_norm(self.vector.float()))


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the verbalizer said of one activation, and how well it reconstructs.

    ``fve`` is None ("unknown") where the checkpoint carries no mean and variance; it is never
    guessed. Neither figure says the text is true (reference: NLA paper, 2026).
    """

    text: str
    closed: bool  # False: the closing tag never came; the text is kept as it stands
    cosine: float | None  # cosine(AR(text), h)
    fve: float | None  # fraction of variance explained, this activation
    rank: int | None  # 1 = best among bank_size + 1 vectors
    bank_size: int
    nla_id: str
    tokens: int  # generated tokens
    seconds: float  # share of the batch's wall time
    support: float | None = None  # 1 - P(unsupported) of its theme, 0..1; None: unknown
    reused: bool = False  # made for another row; tokens and seconds are then 0
    support_decodes: int = field(default=0, compare=False)  # further texts it rests on; live only
    support_s: float = field(default=0.0, compare=False)  # wall time that those took


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said around one token: the visible text a rule may compare against.

    ``output`` is the completion up to and including the judged token, so that a live judgement
    and its replay see the same text whenever they run. None: unknown or withheld, which no rule
    may take for "not said".
    """

    prompt: str | None
    output: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """A matched stretch of a field; offsets in characters of the original text."""

    selection: str
    field: str
    start: int
    end: int
    text: str
    score: float | None = None  # fuzzy 0..100, semantic cosine; None for exact matchers


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule's answer for one decoding."""

    request_id: str
    position: int
    rule_id: str
    rule_name: str
    rule_version: str
    title: str
    severity: Severity
    state: FindingState
    spans: tuple[Span, ...] = ()
    undecided: tuple[str, ...] = ()  # selections without an answer, "name: why"
    fve: float | None = None
    tags: tuple[str, ...] = ()
    risk_score: int | None = None
    routes: tuple[str, ...] = ()  # names of where the rule wants its alerts to go
    support: float | None = None  # cosine that the sentences which matched are worth to the whole
    support_asked: bool = False  # None is then unknown
    support_s: float | None = field(default=None, compare=False)  # wall time of measuring it
    unsupported: float | None = None  # P(the decode's theme is not true), 0..1; None: unknown
    unsupported_decodes: int = field(default=0, compare=False)  # texts it cost; 0: not known
    unsupported_s: float = field(default=0.0, compare=False)  # wall time of those


@dataclass(frozen=True, slots=True)
class Evidence:
    """The finding an alert shows, with its text. Sensitive: sinks honour the privacy setting."""

    finding: Finding
    token: str
    phase: Phase
    explanation: str
    transcript: Transcript
    fve: float | None
    cosine: float | None
    reused: bool = False  # the explanation was made for another row


@dataclass(frozen=True, slots=True)
class Alert:
    """Findings of one request and one rule, folded into one thing worth reading."""

    alert_id: str  # deterministic: the same request, rule and first position give the same id
    request: Request
    rule_id: str
    rule_name: str
    rule_version: str
    title: str
    severity: Severity
    risk_score: int | None
    tags: tuple[str, ...]
    first_position: int
    last_position: int
    count: int  # findings folded into this alert
    held_back: int  # findings of earlier, suppressed repeats
    evidence: tuple[Evidence, ...]  # best first, bounded
    nla_id: str
    sequence: int  # per process, from 0
    time_unix_ns: int
    routes: tuple[str, ...] = ()  # names of where the rule wants its alerts to go
    stop: StopOutcome | None = None  # None: the rule did not ask for a stop


@dataclass(frozen=True, slots=True)
class Stop:
    """A rule's wish to end one generation, and what was known of it at ``time_unix_ns``."""

    request_id: str
    started_unix_ns: int  # of the turn that it was meant for
    rule_id: str
    rule_name: str
    rule_version: str
    position: int  # tokens, from 0: the hit that led to it
    enforced: bool  # by the rule's mode; the configuration may hold it in shadow all the same
    outcome: StopOutcome
    time_unix_ns: int
    why: str = ""  # of WOULD_BLOCK: what kept it from being carried out
    within_tokens: int | None = None  # generated after the hit, as the rule allows
    behind_tokens: int | None = None  # generated after the hit when it was ended; None: unknown


@dataclass(frozen=True, slots=True)
class Coverage:
    """The ledger of one request. ``seen = screened + cached + dropped before the screen``."""

    seen_tokens: int
    screened_tokens: int
    sampled_tokens: int
    decoded_tokens: int
    judged_tokens: int
    cached_tokens: int
    dropped_tokens: Mapping[str, int]  # by reason
    excluded_tokens: int = 0  # seen, but outside the configured phases or too early
    reused_tokens: int = 0  # judged on a decoding made for another row; not among decoded


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the monitor says of a request, and how much of it was looked at."""

    request_id: str
    state: VerdictState
    findings: tuple[Finding, ...]
    coverage: Coverage
    reasons: tuple[str, ...]  # why undecided
