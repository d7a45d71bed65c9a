"""What of an earlier run a later one speaks of: a filtered replay says nothing of the rest."""

from __future__ import annotations

from collections.abc import Iterator

from nae_monitor.recording import Recording
from nae_monitor.records import Finding


class Scope:
    """The requests of a run, and the rows of it where it was made with a filter.

    Raises:
        RecordingError: the run cannot be read.
    """

    def __init__(self, run: Recording) -> None:
        self._run = run
        self._filtered = "where" in run.manifest
        self.requests = {
            name
            for part in run.request_parts
            for name in part.table(["request_id"]).column("request_id").to_pylist()
        }
        for part in run.activation_parts:
            self.requests.update(part.keys()[0])

    def findings(self, other: Recording) -> Iterator[Finding]:
        """Those findings of another run that this one speaks of, too."""
        if not self._filtered:
            yield from other.findings()
            return
        asked = {(one.request_id, one.position) for one in other.findings()}
        present: set[tuple[str, int]] = set()
        for part in self._run.activation_parts:
            present |= asked & set(zip(*part.keys(), strict=True))
        for finding in other.findings():
            if (finding.request_id, finding.position) in present:
                yield finding
