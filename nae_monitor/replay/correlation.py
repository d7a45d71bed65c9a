"""Aggregation in replay: samples go in the order of their capture, not of their reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nae_monitor.detect import Sample
from nae_monitor.recording import RequestRecord
from nae_monitor.records import Finding
from nae_monitor.replay.ports import Correlate

Turns = Mapping[int, RequestRecord]  # the turns of one request by start, in Unix ns


def correlated(
    correlate: Correlate, requests: Sequence[tuple[Sequence[Sample], Turns]]
) -> list[list[Finding]]:
    """The findings of aggregation rules on some requests, a list for each of them.

    A turn ends behind its last sample, as it does live; one without samples ends at last.
    """
    found: list[list[Finding]] = [[] for _ in requests]
    events = sorted(
        ((sample, number) for number, (samples, _) in enumerate(requests) for sample in samples),
        key=lambda event: (event[0].captured_unix_ns, *event[0].identity),
    )
    last = {(number, _turn(sample)): index for index, (sample, number) in enumerate(events)}
    for index, (sample, number) in enumerate(events):
        found[number] += correlate.add(sample)
        record = requests[number][1].get(sample.started_unix_ns)
        if record is not None and last[number, _turn(sample)] == index:
            found[number] += correlate.ended(record.request)
    for number, (samples, turns) in enumerate(requests):
        seen = {sample.started_unix_ns for sample in samples}
        found[number] += _endings(
            correlate, (turns[start] for start in sorted(turns.keys() - seen))
        )
    return found


def _endings(correlate: Correlate, records: Iterable[RequestRecord]) -> list[Finding]:
    return [finding for record in records for finding in correlate.ended(record.request)]


def _turn(sample: Sample) -> tuple[str, int]:
    return sample.request_id, sample.started_unix_ns
