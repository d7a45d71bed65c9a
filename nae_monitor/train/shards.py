"""Shards of collected rows: Parquet, one row a position, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from nae_monitor.errors import InputDataError
from nae_monitor.train.conversations import Conversation, is_content
from nae_monitor.train.files import replacing
from nae_monitor.train.themes import KINDS

CONTEXT_TOKENS = 16  # tokens kept before a position, itself included
VECTOR = "activation_vector"  # fixed-size list of float16 [d], as in recordings
_IDS = pa.list_(pa.int64())
SCHEMA = pa.schema(
    [
        ("digest", pa.string()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("split", pa.string()),
        ("position", pa.int64()),
        ("phase", pa.string()),
        ("content", pa.bool_()),
        ("token_id", pa.int64()),
        ("last_ids", _IDS),
        ("next_ids", _IDS),
        ("top_ids", _IDS),
        ("reply_ids", _IDS),
    ]
)


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """What the target held and expected at the chosen positions of one conversation."""

    vectors: torch.Tensor  # [p, d] float32
    next_ids: list[list[int]]  # [p][n], its greedy continuation
    top_ids: list[list[int]]  # [p][k], the likeliest next tokens, likeliest first


def write_shard(
    path: Path,
    conversations: Sequence[Conversation],
    positions: Sequence[Sequence[int]],
    measured: Sequence[Measured],
    special: frozenset[int],
    d_model: int,
) -> None:
    """Write one shard atomically; a batch without any position leaves an empty one.

    Raises:
        ConfigurationError: it cannot be written; no part of it stays.
    """
    rows = [
        {
            "digest": c.document.digest,
            "source": c.document.source,
            "kind": c.document.kind,
            "split": c.split,
            "position": p,
            "phase": c.phase(p),
            "content": is_content(c.token_ids, p, special),
            "token_id": c.token_ids[p],
            "last_ids": list(c.token_ids[max(0, p - CONTEXT_TOKENS + 1) : p + 1]),
            "next_ids": measured[i].next_ids[j],
            "top_ids": measured[i].top_ids[j],
            "reply_ids": list(c.token_ids[c.prompt_tokens : p + 1]),
        }
        for i, c in enumerate(conversations)
        for j, p in enumerate(positions[i])
    ]
    flat = (
        torch.cat([torch.empty(0, d_model), *(m.vectors for m in measured)])
        .to(torch.float16)
        .numpy()
    )
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), d_model)
    table = pa.Table.from_pylist(rows, SCHEMA).append_column(VECTOR, column)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_shard(
    path: Path, split: str, d_model: int | None = None
) -> tuple[np.ndarray, list[dict[str, object]]]:
    """Vectors [n, d] float16 and the other columns of the rows of one split.

    Args:
        path: a file that :func:`write_shard` wrote; its content is not trusted.
        split: ``train``, ``validation``, ``test`` or ``ood``.
        d_model: width that the vectors must have, where it is known.

    Raises:
        InputDataError: damaged, foreign, or of another width.
    """
    mend = "delete it and run the collect stage again"
    try:
        table = pq.read_table(path, columns=[*SCHEMA.names, VECTOR])
    except (pa.ArrowException, OSError) as error:
        raise InputDataError(f"{path} is damaged or no shard ({mend})") from error
    lacking = [name for name in (*SCHEMA.names, VECTOR) if name not in table.column_names]
    if lacking:
        raise InputDataError(f"{path} lacks the columns {', '.join(lacking)} ({mend})")
    kind = table.schema.field(VECTOR).type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float16(kind.value_type):
        raise InputDataError(f"{path}: {VECTOR} is {kind}, not float16 vectors ({mend})")
    width = kind.list_size
    if d_model is not None and width != d_model:
        raise InputDataError(
            f"{path} holds vectors of width {width}, expected {d_model}: another model's shard"
        )
    if set(table["kind"].unique().to_pylist()) - KINDS.keys():
        raise InputDataError(f"{path} holds unknown kinds ({mend})")
    kept = table.filter(pc.equal(table["split"], split))
    column = kept.column(VECTOR).combine_chunks()
    vectors = np.asarray(column.flatten()).reshape(kept.num_rows, width)
    return vectors, kept.drop_columns([VECTOR]).to_pylist()
