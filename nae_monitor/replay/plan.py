"""What must agree before anything is replayed, and what the new run says of itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nae_monitor.errors import RecordingError
from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.recording.privacy import Content
from nae_monitor.recording.sealing import MANIFEST, SEALS, read_bytes
from nae_monitor.replay.ports import Decoder
from nae_monitor.version import __version__

_OF_ONE_WRITER = (
    "format",
    "format_version",
    "created_unix_ns",
    "hmac_key_id",
    "content",
    "stops_recorded",  # of format 2
    "encryption",
)


def refuse_mismatch(
    recordings: Sequence[Recording], decoder: Decoder | None, model: str | None
) -> None:
    """Refuse recordings that the decoder cannot read, or that differ among themselves.

    Raises:
        RecordingError: names every recording that does not fit, why, and what to do.
    """
    if not recordings:
        raise RecordingError("no recording was named; give at least one directory or Parquet file")
    problems = [
        f"{recording.path}: {fault}"
        for recording in recordings
        for fault in _faults(recording, recordings[0], decoder, model)
    ]
    if problems:
        raise RecordingError("\n".join(problems))


def _faults(
    recording: Recording, first: Recording, decoder: Decoder | None, model: str | None
) -> list[str]:
    faults: list[str] = []
    if recording.d_model != first.d_model:
        faults.append(
            f"its vectors are {recording.d_model} wide, those of {first.path} {first.d_model}: "
            "replay them apart"
        )
    if model is not None and recording.model not in (None, model):
        faults.append(f"records {recording.model}, not {model}: set target.model to the former")
    if decoder is None:
        return faults
    if recording.d_model != decoder.d_model:
        faults.append(
            f"its vectors are {recording.d_model} wide, the NLA {decoder.nla_id} reads "
            f"{decoder.d_model}: name the NLA of the recorded model under nla"
        )
    if recording.layer not in (None, decoder.layer):
        faults.append(
            f"records layer {recording.layer}, the NLA {decoder.nla_id} reads layer "
            f"{decoder.layer}: name the NLA of that layer under nla"
        )
    return faults


def common_content(recordings: Sequence[Recording]) -> Content:
    """The strictest content setting among recordings."""
    order: tuple[Content, ...] = ("full", "hash", "none")
    return max((recording.content for recording in recordings), key=order.index)


def common_dtype(recordings: Sequence[Recording]) -> str:
    """float16 where every recording says so, else float32: no vector loses a bit."""
    dtypes = {recording.manifest.get("vector_dtype") for recording in recordings}
    return "float16" if dtypes == {"float16"} else "float32"


def new_recording(
    directory: Path | str,
    recordings: Sequence[Recording],
    decoder: Decoder | None,
    manifest: Mapping[str, Any],
    content: Content,
    hmac_key: bytes | None,
) -> RecordingWriter:
    """The recording that a replay of ``recordings`` writes, dated as the newest of them.

    Raises:
        ConfigurationError: the directory cannot be written, or holds a recording.
    """
    return RecordingWriter(
        directory,
        manifest=run_manifest(recordings, decoder, manifest),
        d_model=recordings[0].d_model,
        vector_dtype=common_dtype(recordings),
        content=content,
        hmac_key=hmac_key,
        # The same replay is the same bytes, whenever it is made and however long it takes.
        rotate_s=math.inf,
        created_unix_ns=newest_unix_ns(recordings),
        encrypted=is_encrypted(recordings),
        judged_is_filtered=True,
    )


def newest_unix_ns(recordings: Sequence[Recording]) -> int:
    """When the newest of them was begun; nanoseconds since 1970, 0 where none says so."""
    return max(_created_unix_ns(recording) for recording in recordings)


def is_encrypted(recordings: Sequence[Recording]) -> bool:
    """Whether one of them is: what is made of them is encrypted, too."""
    return any(recording.encrypted for recording in recordings)


def _created_unix_ns(recording: Recording) -> int:
    created = recording.manifest.get("created_unix_ns")
    return created if isinstance(created, int) else 0


def resume_plan(
    recordings: Sequence[Recording],
    decoder: Decoder | None,
    facts: Mapping[str, Any],
    options: Sequence[Any],
    configuration: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the outcome of a replay depends on: what a journal must agree with."""
    return {
        "nae_monitor": __version__,
        "recordings": [_source(recording) for recording in recordings],
        "manifest": dict(facts),
        "nla": None if decoder is None else decoder.nla_id,
        "options": list(options),
        "configuration": dict(configuration),
    }


def _source(recording: Recording) -> dict[str, Any]:
    """What must not change under a replay that is broken off and goes on."""
    names = [recording.path / MANIFEST, recording.path / SEALS] if recording.manifest else []
    return {
        "path": str(recording.path),
        "sha256": [hashlib.sha256(read_bytes(name)).hexdigest() for name in names],
        "parts": [[part.name, part.rows] for part in recording.activation_parts],
        "bytes": None if names else recording.path.stat().st_size,
    }


def run_manifest(
    recordings: Sequence[Recording], decoder: Decoder | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What all recordings say alike, then where they came from, then what the caller gives."""
    first = recordings[0].manifest
    shared = {
        key: value
        for key, value in first.items()
        if key not in _OF_ONE_WRITER
        and all(recording.manifest.get(key) == value for recording in recordings)
    }
    if decoder is not None:
        shared["nla_id"] = decoder.nla_id
    sources = [
        {
            "name": recording.path.name,
            "created_unix_ns": recording.manifest.get("created_unix_ns"),
            "complete": recording.complete,
            "keep": recording.keep,
            "nla_weights": recording.manifest.get("nla_weights"),  # of decodes that are used again
        }
        for recording in recordings
    ]
    return {**shared, "replayed_from": sources, **given}


def stops_lost(recordings: Sequence[Recording]) -> int | None:
    """Stops that none of the recordings took; None where one of them does not know."""
    lost = [recording.stops_lost for recording in recordings]
    return None if None in lost else sum(count for count in lost if count is not None)
