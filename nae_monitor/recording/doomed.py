"""What an erasure is asked to take out of recordings, and what it took."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Doomed:
    """Which requests are to go; one that fits any of these goes with all of its turns."""

    requests: Collection[str] = ()  # ids of requests or of their groups
    tenants: Collection[str] = ()
    begun_before_unix_ns: int | None = None  # counts by the latest turn; an unknown time stays

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row's request is named; times are for the caller to compare."""
        named = row["request_id"] in self.requests or row["group_id"] in self.requests
        return named or row["tenant"] in self.tenants

    def may_name(self, request_id: str) -> bool:
        """Whether a request of which only the id is left may be of those named.

        Ids of requests have the caller's id in them (``ID/2``, ``ID#1``, ``chatcmpl-ID-8hex``), so
        that one between other letters and digits counts. Every request may be of a tenant.
        """
        names = "|".join(re.escape(name) for name in self.requests if name)
        inside = names and re.search(rf"(?<![0-9A-Za-z])(?:{names})(?![0-9A-Za-z])", request_id)
        return bool(self.tenants or inside)


@dataclass(frozen=True, slots=True)
class Erased:
    """What was taken out of one recording, or would be."""

    directory: Path
    requests: int
    activations: int = 0
    records: int = 0  # turns of requests
    findings: int = 0
    stops: int = 0
    alerts: int = 0
    orphans: int = 0  # of the requests, those whose rows a crash had lost
    orphans_left: int = 0  # requests with lines but no rows, that nothing named may have meant
    replays: int = 0  # broken off, whose progress goes: it may hold what is to go
