"""Rows decoded and judged in parts, each of them once however often a replay is broken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from nae_monitor.errors import EngineError
from nae_monitor.health import Health
from nae_monitor.recording import transcript_for
from nae_monitor.recording.findings import withheld
from nae_monitor.recording.privacy import ContentFilter
from nae_monitor.records import Decoding, Finding, Transcript
from nae_monitor.replay.decoding import DECODE_FAILED, RowDecoder
from nae_monitor.replay.index import Row
from nae_monitor.replay.journal import Journal, Judged
from nae_monitor.replay.ports import Judge

Elsewhere = Callable[[int, int], Iterator[list[Judged]]]
"""Gives the judged parts from one number (from 0) to below another, in order."""
PART_ROWS = 256  # what a replay that is killed does again, at most


@dataclass(frozen=True, slots=True)
class RowJudge:
    """Gives each row what it comes to; texts are as ``content`` lets them through."""

    rows: RowDecoder
    judge: Judge
    health: Health
    content: ContentFilter

    def part(self, rows: Sequence[Row]) -> list[Judged]:
        """What each row comes to, in order.

        Raises:
            EngineError: the decoder failed on five batches in a row.
        """
        decoded = self.rows.decode(rows)
        judged = [
            self._one(row, decoded.decodings.get(number), decoded.dropped.get(number))
            for number, row in enumerate(rows)
        ]
        return [
            replace(one, reused=True) if number in decoded.reused else one
            for number, one in enumerate(judged)
        ]

    def _one(self, row: Row, decoding: Decoding | None, reason: str | None) -> Judged:
        if decoding is None:
            return Judged(None, reason or "not_decoded", None)
        findings = self._findings(row, decoding)
        shown = replace(decoding, text=self.content.text(decoding.text) or "")
        if findings is None:
            return Judged(shown, "judge_failed", None)
        return Judged(shown, None, tuple(withheld(one, self.content) for one in findings))

    def _findings(self, row: Row, decoding: Decoding) -> tuple[Finding, ...] | None:
        activation = row.recorded.activation
        transcript = transcript_for(row.request, activation.position)
        if row.request is None and row.recorded.context_text is not None:
            transcript = Transcript(row.recorded.context_text, "")
        findings: tuple[Finding, ...] | None = None
        with self.health.guard("replay.judge"):
            findings = self.judge.judge(activation, decoding, transcript)
        return findings


@dataclass(frozen=True, slots=True)
class JudgedParts:
    """Rows in parts of ``part_rows``, each judged once and kept.

    ``elsewhere`` gives the parts that are not in the journal, in order, where others judge them.
    """

    judge: RowJudge
    journal: Journal
    part_rows: int = PART_ROWS
    elsewhere: Iterator[list[Judged]] | None = None

    def judged(self, piece: Sequence[Row]) -> Iterator[list[tuple[Row, Judged]]]:
        """The rows of a piece of whole parts, in order, part by part.

        Raises:
            EngineError: the decoder failed on five batches in a row.
            OSError: the disk refuses.
        """
        unsure: list[list[Judged]] = []
        for start in range(0, len(piece), self.part_rows):
            rows = piece[start : start + self.part_rows]
            part = self.journal.kept()
            if part is None:
                part = self._part(rows)
                unsure.append(part)
                # A decoder that is about to be given up: these rows are for the next start.
                if part[-1].reason != DECODE_FAILED:
                    self._keep(unsure)
            yield list(zip(rows, part, strict=True))
        self._keep(unsure)

    def _part(self, rows: Sequence[Row]) -> list[Judged]:
        if self.elsewhere is None:
            return self.judge.part(rows)
        part = next(self.elsewhere, None)
        if part is None or len(part) != len(rows):
            raise EngineError("the workers gave other rows than were asked for")
        return part

    def _keep(self, parts: list[list[Judged]]) -> None:
        for part in parts:
            self.journal.keep(part)
        parts.clear()
