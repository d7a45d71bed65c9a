"""Which rows that were judged live the recordings do not hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from nae_monitor.recording import RecordedActivation, RequestRecord
from nae_monitor.records import VerdictState

NOT_RECORDED = "not_recorded"  # the reason under which such rows are among the dropped ones
NOT_SELECTED = "not_selected"  # the same for rows that the replay was told to leave out


@dataclass(slots=True)
class _Turn:
    rows: int = 0
    decoded: int = 0  # live
    left_out: int = 0  # of the decoded ones


@dataclass(slots=True)
class KeptRows:
    """Counts rows by recording, request and turn; a few numbers a turn, however many rows.

    A recording may have been told to keep the rows of some requests only (``keep: captured``), or
    have let some go. What was judged live and cannot be judged again must not pass for clean.
    """

    _turns: dict[tuple[int, str], dict[int, _Turn]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(_Turn))
    )
    _lacking: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def lacking_rows(self) -> int:
        """Over all requests that :meth:`lacking` was asked about."""
        return sum(self._lacking.values())

    def saw(self, recording: int, recorded: RecordedActivation) -> None:
        """A row is there; ``recording`` is the index of the one that holds it."""
        request = recorded.activation.request
        turn = self._turns[recording, request.request_id][request.started_unix_ns]
        turn.rows += 1
        turn.decoded += recorded.decoding is not None

    def leave_out(self, recording: int, turn: tuple[str, int], rows: int, decoded: int) -> None:
        """Rows of a turn (request id, start in Unix ns) are there and are not to be replayed."""
        counts = self._turns[recording, turn[0]][turn[1]]
        counts.rows += rows
        counts.decoded += decoded
        counts.left_out += decoded

    def left_out(self, recording: int, record: RequestRecord) -> int:
        """Rows judged live, up to the end of this turn, that the replay was told to leave out."""
        turns = self._turns.get((recording, record.request.request_id), {})
        started = record.request.started_unix_ns
        return sum(turn.left_out for start, turn in turns.items() if start <= started)

    def lacking(
        self, recording: int, record: RequestRecord, known: Collection[RequestRecord] = ()
    ) -> int:
        """Rows of a request, up to the end of this turn, that are missing; after all were seen.

        A request's coverage adds its turns up. That of a turn during which another one began can
        hold rows of both, so it lacks no more than the request does by all of its ``known``
        records. A turn that was called clean had no other one beside it.
        """
        place = recording, record.request.request_id
        turns = self._turns.get(place, {})
        started = record.request.started_unix_ns
        found = _missing(record, [turn for start, turn in turns.items() if start <= started])
        if record.state is not VerdictState.CLEAN:
            everything = list(turns.values())
            found = min(found, max(_missing(one, everything) for one in (record, *known)))
        if found:
            self._lacking[place] = max(found, self._lacking.get(place, 0))
        return found


def _missing(record: RequestRecord, turns: Collection[_Turn]) -> int:
    unseen = record.coverage.sampled_tokens - sum(turn.rows for turn in turns)
    # A recording that keeps only what was decoded lacks the other rows, and tells of them.
    undecoded = record.coverage.judged_tokens - sum(turn.decoded for turn in turns)
    return max(0, min(unseen, undecoded))
