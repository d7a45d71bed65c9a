"""The reading end: nothing is believed before it is checked, and no more than a file is held."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from nae_monitor.errors import RecordingError
from nae_monitor.recording.encryption import PLAIN, Cipher, reading_cipher
from nae_monitor.recording.findings import finding_from_json
from nae_monitor.recording.parts import (
    MAX_D_MODEL,
    ActivationPart,
    SealedActivations,
    SealedTable,
    reference_parts,
    refusing,
)
from nae_monitor.recording.places import located
from nae_monitor.recording.privacy import Content
from nae_monitor.recording.rows import RecordedActivation, RequestRecord
from nae_monitor.recording.schema import (
    REQUESTS,
    VECTOR_TYPES,
    activations_schema,
    recorded_request,
)
from nae_monitor.recording.sealing import (
    ERASURE,
    FINDINGS,
    MANIFEST,
    MAX_JSON_BYTES,
    OPEN_SUFFIX,
    SEALS,
    STOPS,
    Seal,
    Totals,
    parse_json,
    read_bytes,
    read_lines,
    read_seals,
)
from nae_monitor.recording.stops import stop_from_json
from nae_monitor.recording.writer import FORMAT, FORMAT_VERSION
from nae_monitor.records import Finding, Stop

READABLE_VERSIONS = range(1, FORMAT_VERSION + 1)


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording that was opened: manifest, seals and sizes checked, contents on reading."""

    path: Path
    manifest: Mapping[str, Any]
    d_model: int
    content: Content
    complete: bool  # closed in order; False after a crash or while still being written
    unfinished: tuple[str, ...]  # files whose rows are lost, or not yet written
    activation_parts: tuple[ActivationPart, ...]
    request_parts: tuple[SealedTable, ...] = ()
    totals: Totals | None = None
    cipher: Cipher = PLAIN

    @classmethod
    def open(cls, path: Path | str) -> Recording:
        """Open a recording directory, or a Parquet file with an ``activation_vector`` column.

        Either may be a URL that fsspec opens, if the extra ``remote`` is installed.

        Raises:
            RecordingError: no manifest, or anything truncated, damaged, missing or foreign, or
                encrypted with a key that is not at hand; names the file.
        """
        place = located(path)
        if place.is_dir():
            return _open_directory(place)
        if not place.exists():
            raise RecordingError(f"{place}: does not exist")
        parts, d_model = reference_parts(place)
        empty: Mapping[str, Any] = MappingProxyType({})
        return cls(place, empty, d_model, "full", True, (), tuple(parts))

    @property
    def model(self) -> str | None:
        """The monitored model, where the manifest names one."""
        model = self.manifest.get("model")
        return model if isinstance(model, str) else None

    @property
    def layer(self) -> int | None:
        """K of the recorded ``hidden_states[K]``, where the manifest says so."""
        layer = self.manifest.get("layer")
        return layer if isinstance(layer, int) else None

    @property
    def encrypted(self) -> bool:
        """Whether rows, texts and findings stand encrypted on the disk."""
        return self.cipher.described is not None

    @property
    def text_withheld(self) -> bool:
        """Whether texts are hashes or missing."""
        return self.content != "full"

    @property
    def stops_lost(self) -> int | None:
        """Stops that never reached the recording; None where that is not known.

        It is not before a recording was closed, nor of formats 1 (no stops) and 2 (none counted).
        """
        return None if self.totals is None else self.totals.stops_lost

    @property
    def stops_recorded(self) -> bool:
        """Whether every stop is in the recording; else one that is missing is not known of."""
        return self.stops_lost == 0

    @property
    def keep(self) -> str | None:
        """Which rows the recording was meant to keep; None where the manifest does not say."""
        keep = self.manifest.get("keep")
        return keep if isinstance(keep, str) else None

    def activations(self) -> Iterator[RecordedActivation]:
        """Every row in the order written, one file in memory at a time."""
        for part in self.activation_parts:
            yield from part.read()

    def activation_columns(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row as plain values of some columns, vectors left unread."""
        for part in self.activation_parts:
            yield from part.plain(columns)

    def requests(self) -> Iterator[RequestRecord]:
        """Every finished request, one file in memory at a time."""
        for part in self.request_parts:
            yield from self.requests_of(part)

    def requests_of(
        self, part: SealedTable, rows: Sequence[int] | None = None
    ) -> Iterator[RequestRecord]:
        """The requests of one file, or those of its rows with these indices."""
        table = part.table()
        for row in (table if rows is None else table.take(list(rows))).to_pylist():
            with refusing(part.path):
                record = recorded_request(row, text_withheld=self.text_withheld)
            yield record

    def findings(self) -> Iterator[Finding]:
        """Every finding in the order written."""
        sealed = None if self.totals is None else self.totals.findings_sha256
        for value, where in self._lines(FINDINGS, sealed):
            yield finding_from_json(value, where)

    def stops(self) -> Iterator[Stop]:
        """What became known of stops, in the order written; a later line on one replaces it."""
        sealed = None if self.totals is None else self.totals.stops_sha256
        if sealed == "":  # format 1
            return
        for value, where in self._lines(STOPS, sealed):
            yield stop_from_json(value, where)

    def _lines(self, name: str, sealed_sha256: str | None) -> Iterator[tuple[Any, str]]:
        """Each line of a file as JSON, and where it stands; checked first where it was sealed."""
        path = self.path / name
        if not self.manifest:
            return
        sealed = sealed_sha256 is not None
        if sealed and hashlib.sha256(read_bytes(path)).hexdigest() != sealed_sha256:
            raise RecordingError(f"{path}: damaged: its SHA-256 is not the sealed one")
        lines = read_lines(path)[0] if path.exists() else ()
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            yield parse_json(self.cipher.open_line(name, number - 1, line, where), where), where


def open_recordings(paths: Iterable[Path | str]) -> list[Recording]:
    """Open each path; a directory without manifest stands for the recordings directly in it.

    Raises:
        RecordingError: as :meth:`Recording.open`, or a directory with no recording in it.
    """
    recordings: list[Recording] = []
    for given in paths:
        path = located(given)
        if path.is_dir() and not (path / MANIFEST).exists():
            inner = sorted(child.parent for child in path.glob(f"*/{MANIFEST}"))
            if not inner:
                raise _no_manifest(path)
            recordings.extend(Recording.open(child) for child in inner)
        else:
            recordings.append(Recording.open(path))
    return recordings


def _no_manifest(path: Path) -> RecordingError:
    return RecordingError(f"{path}: no {MANIFEST}: not a recording, or one that never started")


def _open_directory(directory: Path) -> Recording:
    if (directory / ERASURE).exists():
        raise RecordingError(
            f"{directory / ERASURE}: an erasure was broken off; "
            "run `nae-monitor record erase` on it again to finish it"
        )
    manifest, d_model, content = _read_manifest(directory)
    cipher = reading_cipher(manifest, str(directory / MANIFEST))
    seals, totals = read_seals(directory / SEALS)
    withheld = content != "full"
    schema = activations_schema(d_model, manifest["vector_dtype"])
    activations: list[ActivationPart] = []
    requests: list[SealedTable] = []
    for seal in seals:
        if seal.file.startswith("activations-"):
            part = SealedActivations(directory, seal, schema, cipher, text_withheld=withheld)
            activations.append(part)
        else:
            requests.append(SealedTable(directory, seal, REQUESTS, cipher))
    _refuse_unsealed(directory, seals)
    if totals is not None:
        _check_totals(directory, totals, activations, requests)
    return Recording(
        path=directory,
        manifest=manifest,
        d_model=d_model,
        content=content,
        complete=totals is not None,
        unfinished=_unfinished(directory, seals),
        activation_parts=tuple(activations),
        request_parts=tuple(requests),
        totals=totals,
        cipher=cipher,
    )


def _read_manifest(directory: Path) -> tuple[Mapping[str, Any], int, Content]:
    path = directory / MANIFEST
    if not path.exists():
        raise _no_manifest(directory)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise RecordingError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
    data = read_bytes(path)
    manifest = parse_json(data.decode("utf-8", "replace"), str(path))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RecordingError(f"{path}: is not the manifest of a recording")
    version = manifest.get("format_version")
    if version not in READABLE_VERSIONS:
        raise RecordingError(f"{path}: format_version {version}; this reads 1 to {FORMAT_VERSION}")
    d_model, dtype = manifest.get("d_model"), manifest.get("vector_dtype")
    content = manifest.get("content")
    if not isinstance(d_model, int) or not 0 < d_model <= MAX_D_MODEL:
        raise RecordingError(f"{path}: d_model is not between 1 and {MAX_D_MODEL}")
    if dtype not in VECTOR_TYPES or content not in ("full", "hash", "none"):
        raise RecordingError(f"{path}: unknown vector_dtype or content setting")
    return MappingProxyType(manifest), d_model, cast(Content, content)


def _refuse_unsealed(directory: Path, seals: Sequence[Seal]) -> None:
    known = {seal.file for seal in seals}
    for path in sorted(directory.glob("*.parquet")):
        if path.name not in known:
            raise RecordingError(f"{path}: not in {SEALS}: no writer of this recording made it")


def _unfinished(directory: Path, seals: Sequence[Seal]) -> tuple[str, ...]:
    known = {seal.file for seal in seals}
    names = (path.name for path in sorted(directory.glob(f"*.parquet{OPEN_SUFFIX}")))
    return tuple(name for name in names if name.removesuffix(OPEN_SUFFIX) not in known)


def _check_totals(
    directory: Path,
    totals: Totals,
    activations: Sequence[ActivationPart],
    requests: Sequence[SealedTable],
) -> None:
    sums = (sum(part.rows for part in activations), sum(part.rows for part in requests))
    if sums != (totals.activations, totals.requests):
        raise RecordingError(f"{directory / SEALS}: its totals are not the sum of its files")
