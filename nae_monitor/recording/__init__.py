"""Recordings: activations, decodings, requests and findings as Parquet and canonical JSON lines.

A recording is a directory::

    manifest.json               what was recorded: model, layer, NLA, rules, content setting
    activations-00000.parquet   one row a chosen activation, with its live decoding
    requests-00000.parquet      one row a finished request
    findings.jsonl              one canonical JSON object a finding
    stops.jsonl                 one each time something became known of a rule's stop
    seals.jsonl                 name, rows, bytes and SHA-256 of each finished file; last the totals

Rows are buffered and written as small whole files, so a crash loses at most the rows since the
last rotation, and the reader names the file they would have been in. Where a recording is
encrypted (encryption.py), the manifest, the seals and a run's ``alerts.jsonl`` stay readable: they
hold counts, hashes and ids, and no text.
"""

from nae_monitor.recording.doomed import Doomed, Erased
from nae_monitor.recording.erasure import erase, erase_all
from nae_monitor.recording.export import export
from nae_monitor.recording.findings import (
    canonical_line,
    finding_from_json,
    finding_sort_key,
    finding_to_json,
)
from nae_monitor.recording.reader import Recording, open_recordings
from nae_monitor.recording.rows import RecordedActivation, RequestRecord, transcript_for
from nae_monitor.recording.stops import latest_stops
from nae_monitor.recording.writer import RecordingWriter

__all__ = [
    "Doomed",
    "Erased",
    "RecordedActivation",
    "Recording",
    "RecordingWriter",
    "RequestRecord",
    "canonical_line",
    "erase",
    "erase_all",
    "export",
    "finding_from_json",
    "finding_sort_key",
    "finding_to_json",
    "latest_stops",
    "open_recordings",
    "transcript_for",
]
