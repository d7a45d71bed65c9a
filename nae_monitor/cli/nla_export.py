"""``nae-monitor nla export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.terminal import json_line, output, printable, quiet_libraries
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV


class Precision(StrEnum):
    """How the merged weights are stored."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A new or empty directory; gets av/ and ar/.")
    ],
    merged: Annotated[
        bool, typer.Option("--merged", help="Write full weights in the released pairs' layout.")
    ] = False,
    av: Annotated[str, typer.Option(help="Verbalizer: embedded/…, directory or hub id.")] = (
        EMBEDDED_AV
    ),
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    dtype: Annotated[Precision, typer.Option(help="Of the weights; merging is in float32.")] = (
        Precision.BFLOAT16
    ),
    as_json: JsonOption = False,
) -> None:
    """Write a pair with its adapters merged, for readers of the released pairs.

    The directories hold ordinary models with an nla_meta.yaml beside them. They load here as well,
    without the base model.
    """
    import torch

    from nae_monitor.decode import open_pair, write_merged_pair
    from nae_monitor.models import resolve_nla, resolve_target
    from nae_monitor.models.progress import steps

    if not merged:
        raise typer.BadParameter(
            "say --merged; unmerged, a pair is its own directories as they lie"
        )
    quiet_libraries()
    pair = open_pair(resolve_nla(av), resolve_nla(ar), resolve_target)
    with steps("merging", 2) as step:
        written = write_merged_pair(*pair, out, dtype=getattr(torch, dtype.value), step=step)
    if as_json:
        rows = [{"path": str(place), "bytes": _size_bytes(place)} for place in written]
        nla_id = pair[0].contract.nla_id
        json_line({"nla_id": nla_id, "dtype": dtype.value, "av": rows[0], "ar": rows[1]})
        return
    for place in written:
        size = f"{_size_bytes(place) / 1e6:.1f} MB"
        output().print(f"{printable(str(place))}  {size}", soft_wrap=True)


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
