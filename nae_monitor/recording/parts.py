"""Parquet files as parts of a recording: read whole, in pieces of rows, or by columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nae_monitor.errors import RecordingError
from nae_monitor.recording.encryption import PLAIN, Cipher
from nae_monitor.recording.rows import WITHHELD_TOKEN_ID, RecordedActivation
from nae_monitor.recording.schema import VECTOR, recorded_activation, vectors_of
from nae_monitor.recording.sealing import MAX_FILE_BYTES, OPEN_SUFFIX, Seal, read_sealed
from nae_monitor.records import Activation, Phase, Request, SampleReason

MAX_D_MODEL = 65_536
BATCH_ROWS = 256


class ActivationPart(Protocol):
    """A file, or one row group of a large one, of activations. All raise RecordingError."""

    @property
    def name(self) -> str:
        """File name, for messages."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    def keys(self) -> tuple[list[str], list[int]]:
        """Request id and position of each row, without reading vectors."""

    def read(self) -> Iterator[RecordedActivation]:
        """Every row in file order."""

    def take(self, rows: Sequence[int]) -> list[RecordedActivation]:
        """The rows with these ascending indices."""

    def plain(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row as a mapping of the named columns; one the file lacks is None."""


@contextmanager
def refusing(where: Path | str) -> Iterator[None]:
    """Turn whatever a broken file provokes into a RecordingError that names it.

    Messages of the parser can quote values, so only the kind of fault is passed on.
    """
    try:
        yield
    except RecordingError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        kind = type(error).__name__
        raise RecordingError(f"{where}: truncated, damaged or not such a file ({kind})") from error


class SealedTable:
    """One sealed Parquet file; its hash is checked every time it is read."""

    def __init__(self, directory: Path, seal: Seal, schema: Any, cipher: Cipher = PLAIN) -> None:
        self.cipher = cipher
        final = directory / seal.file
        # Sealed but not yet renamed when the writer died: whole all the same.
        self.path = final if final.exists() else final.with_name(final.name + OPEN_SUFFIX)
        self.name = seal.file
        self.rows = seal.rows
        self.seal = seal
        self._schema = schema
        with refusing(self.path):
            size = self.path.stat().st_size if self.path.exists() else -1
        if size < 0:
            raise RecordingError(f"{final}: missing; it was sealed with {seal.rows} rows")
        if size != seal.bytes:
            kind = "truncated" if size < seal.bytes else "longer than when it was sealed"
            raise RecordingError(f"{self.path}: {kind}: {size} bytes of {seal.bytes}")

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """The file as an Arrow table, columns as named."""
        data = self.cipher.open_file(self.name, read_sealed(self.path, self.seal), str(self.path))
        with refusing(self.path):
            file = pq.ParquetFile(pa.BufferReader(data))
            if not file.schema_arrow.equals(self._schema):
                raise RecordingError(f"{self.path}: its columns are not those of the manifest")
            if file.metadata.num_rows != self.rows:
                raise RecordingError(f"{self.path}: does not hold {self.rows} rows")
            return file.read(columns=None if columns is None else list(columns))


class SealedActivations(SealedTable):
    """An activations file of our own; implements :class:`ActivationPart`."""

    def __init__(
        self,
        directory: Path,
        seal: Seal,
        schema: Any,
        cipher: Cipher = PLAIN,
        *,
        text_withheld: bool,
    ) -> None:
        super().__init__(directory, seal, schema, cipher)
        self._text_withheld = text_withheld

    def keys(self) -> tuple[list[str], list[int]]:
        """See :class:`ActivationPart`."""
        table = self.table(["request_id", "position"])
        return table.column("request_id").to_pylist(), table.column("position").to_pylist()

    def read(self) -> Iterator[RecordedActivation]:
        """See :class:`ActivationPart`."""
        yield from self._records(self.table())

    def take(self, rows: Sequence[int]) -> list[RecordedActivation]:
        """See :class:`ActivationPart`."""
        return list(self._records(self.table().take(list(rows))))

    def plain(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """See :class:`ActivationPart`."""
        yield from self.table(columns).to_pylist()

    def _records(self, table: Any) -> Iterator[RecordedActivation]:
        with refusing(self.path):
            d_model = self._schema.field(VECTOR).type.list_size
            vectors = vectors_of(table.column(VECTOR), d_model)
            rows = table.drop_columns([VECTOR]).to_pylist()
        for row, vector in zip(rows, vectors, strict=True):
            with refusing(self.path):
                record = recorded_activation(
                    row, torch.from_numpy(vector.copy()), text_withheld=self._text_withheld
                )
            yield record


class ReferenceRowGroup:
    """One row group of a Parquet file that holds just ``activation_vector``.

    Understands the optional columns of the reference implementation: ``n_raw_tokens``,
    ``activation_layer``, ``doc_id``, ``detokenized_text_truncated``. Rows are read in small
    batches: its row groups may be larger than memory. Implements :class:`ActivationPart`.
    """

    COLUMNS = (
        VECTOR,
        "n_raw_tokens",
        "activation_layer",
        "doc_id",
        "detokenized_text_truncated",
    )

    def __init__(self, path: Path, group: int, rows: int, first_row: int, d_model: int) -> None:
        self.name = f"{path.name} (row group {group})"
        self.rows = rows
        self._path = path
        self._group = group
        self._first_row = first_row
        self._d_model = d_model

    @property
    def _where(self) -> str:
        return f"{self._path}, row group {self._group}"

    def _batches(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        with refusing(self._where):
            file = open_reference(self._path)
            present = [name for name in columns if name in file.schema_arrow.names]
            batches = file.iter_batches(
                BATCH_ROWS, row_groups=[self._group], columns=present or [VECTOR]
            )
        first = 0
        while True:
            with refusing(self._where):
                batch = next(batches, None)
            if batch is None:
                return
            yield first, batch
            first += len(batch)

    def keys(self) -> tuple[list[str], list[int]]:
        """See :class:`ActivationPart`."""
        ids: list[str] = []
        positions: list[int] = []
        for first, batch in self._batches(("n_raw_tokens", "doc_id")):
            names = [name for name in batch.schema.names if name != VECTOR]
            rows = batch.select(names).to_pylist() if names else [{}] * len(batch)
            for offset, row in enumerate(rows):
                ids.append(self._request_id(row, first + offset))
                positions.append(_position(row))
        return ids, positions

    def read(self) -> Iterator[RecordedActivation]:
        """See :class:`ActivationPart`."""
        yield from self._records(lambda _: True)

    def take(self, rows: Sequence[int]) -> list[RecordedActivation]:
        """See :class:`ActivationPart`."""
        wanted = set(rows)
        return list(self._records(wanted.__contains__))

    def plain(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """See :class:`ActivationPart`."""
        empty = dict.fromkeys(columns)
        for request_id, position in zip(*self.keys(), strict=True):
            yield {**empty, "request_id": request_id, "position": position}

    def _records(self, wanted: Callable[[int], bool]) -> Iterator[RecordedActivation]:
        for first, batch in self._batches(self.COLUMNS):
            with refusing(self._where):
                vectors = vectors_of(batch.column(VECTOR), self._d_model)
                rows = batch.drop_columns([VECTOR]).to_pylist() or [{}] * len(batch)
            for offset, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
                if wanted(first + offset):
                    yield self._record(row, torch.from_numpy(vector.copy()), first + offset)

    def _record(self, row: Mapping[str, Any], vector: Any, index: int) -> RecordedActivation:
        request_id = self._request_id(row, index)
        layer = row.get("activation_layer")
        activation = Activation(
            request=Request(request_id=request_id, group_id=request_id, model=""),
            position=_position(row),
            token_id=WITHHELD_TOKEN_ID,
            token="",
            phase=Phase.PROMPT,
            layer=-1 if layer is None else int(layer),
            vector=vector if vector.dtype in (torch.float16, torch.float32) else vector.float(),
            reason=SampleReason.REPLAY,
        )
        return RecordedActivation(
            activation, None, context_text=row.get("detokenized_text_truncated")
        )

    def _request_id(self, row: Mapping[str, Any], index: int) -> str:
        document = row.get("doc_id")
        return f"{self._path.stem}:{self._first_row + index if document is None else document}"


def _position(row: Mapping[str, Any]) -> int:
    tokens = row.get("n_raw_tokens")
    return 0 if tokens is None else max(0, int(tokens) - 1)


def open_reference(path: Path) -> Any:
    """A foreign Parquet file with its footer read; RecordingError names what is wrong."""
    with refusing(path):
        if path.stat().st_size > 64 * MAX_FILE_BYTES:
            raise RecordingError(f"{path}: larger than {64 * MAX_FILE_BYTES} bytes")
        # Opened by itself, so that it may be anywhere that a recording may be.
        file = pq.ParquetFile(path.open("rb"), page_checksum_verification=True)
        if VECTOR not in file.schema_arrow.names:
            raise RecordingError(f"{path}: has no column {VECTOR!r}")
        return file


def reference_parts(path: Path) -> tuple[list[ReferenceRowGroup], int]:
    """The row groups of a foreign file and its vector width [d].

    Raises:
        RecordingError: not Parquet, truncated, no vectors, or vectors of no usable width.
    """
    file = open_reference(path)
    with refusing(path):
        kind = file.schema_arrow.field(VECTOR).type
        if pa.types.is_fixed_size_list(kind):
            d_model = kind.list_size
        else:
            first = next(file.iter_batches(1, columns=[VECTOR]), None)
            d_model = 0 if first is None else len(first.column(0)[0].as_py() or ())
        if not 0 < d_model <= MAX_D_MODEL:
            raise RecordingError(f"{path}: {VECTOR} is {d_model} wide")
        parts: list[ReferenceRowGroup] = []
        first_row = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            parts.append(ReferenceRowGroup(path, group, rows, first_row, d_model))
            first_row += rows
    return parts, d_model
