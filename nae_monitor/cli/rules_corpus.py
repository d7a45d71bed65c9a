"""Where the samples of ``--corpus`` come from: recordings, or text and JSONL files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nae_monitor.detect.tools.corpus import Sample

PIECE_BYTES = 64 * 1024 * 1024


def samples_at(paths: Sequence[Path], nla_id: str = "") -> Iterator[Sample]:
    """Every sample of recordings (directories with a manifest, or of such) and of text files.

    A recording's sample is named ``request:position``; rows without a readable decoding are left
    out. ``nla_id`` is the pair of decodes in text files that name none.

    Raises:
        RecordingError: a damaged recording.
        InputDataError: a file that is not a corpus.
    """
    from nae_monitor.detect.tools.corpus import read_corpus

    for path in paths:
        if _is_recording(path):
            yield from _recorded(path)
        else:
            yield from read_corpus([path], nla_id)


def _is_recording(path: Path) -> bool:
    return path.is_dir() and any(
        any(path.glob(pattern)) for pattern in ("manifest.json", "*/manifest.json")
    )


def _recorded(path: Path) -> Iterator[Sample]:
    from nae_monitor.detect.tools.corpus import Sample
    from nae_monitor.recording import open_recordings, transcript_for
    from nae_monitor.replay.index import RowIndex

    index = RowIndex(open_recordings([path]))
    for piece in index.pieces(PIECE_BYTES):
        for row in piece:
            activation, decoding = row.recorded.activation, row.recorded.readable_decoding
            if decoding is not None:
                name = f"{activation.request.request_id}:{activation.position}"
                transcript = transcript_for(row.request, activation.position)
                yield Sample(name, activation, decoding, transcript)
