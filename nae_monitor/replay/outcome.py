"""What a replay gathers on a request, and what it comes to in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nae_monitor.detect import Sample
from nae_monitor.recording import RequestRecord
from nae_monitor.records import Finding


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """What a replay did. ``rows = judged + the sum of dropped``."""

    directory: Path
    rows: int
    reused: int  # judged on the decoding made live
    decoded: int  # decoded now
    judged: int
    findings: int
    dropped: Mapping[str, int]  # rows by reason
    alerts: Mapping[str, int] = field(default_factory=dict)  # by fate; empty where not asked for
    not_recorded: int = 0  # rows judged live that the recordings do not hold; of finished requests


@dataclass(slots=True)
class OfRequest:
    """What replay gathers on one request, over all its turns."""

    records: dict[int, RequestRecord] = field(default_factory=dict)  # by start, in Unix ns
    findings: list[Finding] = field(default_factory=list)
    judged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    undone: Counter[str] = field(default_factory=Counter)  # live drops that were judged now
    samples: list[Sample] = field(default_factory=list)  # what aggregation rules look at
