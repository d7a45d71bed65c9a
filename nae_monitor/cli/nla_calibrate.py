"""``nla calibrate``: the calibration set of a pair, from its decodes of ordinary messages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nae_monitor.cli.rules_corpus import samples_at
from nae_monitor.cli.terminal import output, quiet_libraries
from nae_monitor.errors import InputDataError
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV

if TYPE_CHECKING:
    from nae_monitor.detect.tools.corpus import Sample

DIGITS = 5  # of a value: finer steps than any percentile tells apart


class Metric(StrEnum):
    """What is ranked."""

    FVE = "fve"
    COSINE = "cosine"


def calibrate(
    corpus: Annotated[
        list[Path],
        typer.Option(help="Decodes of ordinary messages: recordings, or .jsonl files with fve."),
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="The calibration set to write.")
    ] = Path("calibration.json"),
    av: Annotated[str, typer.Option(help="Verbalizer: embedded/…, directory or hub id.")] = (
        EMBEDDED_AV
    ),
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    metric: Annotated[Metric, typer.Option(help="The figure that is ranked.")] = Metric.FVE,
) -> None:
    """Write the fidelity of a pair's decodes, for gates on percentiles; figures only, no text.

    A reconstructor ships its set as calibration.json in its own directory; its SHA256SUMS, where
    it has them, are brought up to date.
    """
    from nae_monitor.decode import open_pair
    from nae_monitor.detect import Calibration, write_calibration
    from nae_monitor.models import resolve_nla, resolve_target
    from nae_monitor.models.nla import list_in_checksums

    quiet_libraries()
    pair, _ = open_pair(resolve_nla(av), resolve_nla(ar), resolve_target)
    nla_id = pair.contract.nla_id
    unscored: list[str] = []
    figures = list(_figures(samples_at(corpus, nla_id), nla_id, metric, unscored))
    try:
        found = Calibration.of(nla_id, figures, metric.value)
    except ValueError as error:
        named = ", ".join(str(path) for path in corpus)
        raise InputDataError(f"{named}: makes no calibration set: {error}") from error
    write_calibration(out, found)
    list_in_checksums(out)
    middle = found.values[len(found.values) // 2]
    what = f"{metric} of {len(found.values)} decodes of {nla_id}, median {middle:g}"
    left_out = f"; {len(unscored)} unscored left out" if unscored else ""
    output().print(f"{what}{left_out}: {out}", soft_wrap=True)


def _figures(
    samples: Iterator[Sample], nla_id: str, metric: Metric, unscored: list[str]
) -> Iterator[float]:
    """The figure of each scored decode; the ids of others are put into ``unscored``."""
    for sample in samples:
        decoding = sample.decoding
        if decoding.nla_id != nla_id:
            raise InputDataError(f"{sample.id}: is a decode of {decoding.nla_id!r}, not {nla_id!r}")
        figure: float | None = getattr(decoding, metric.value)
        if figure is None or not math.isfinite(figure):
            unscored.append(sample.id)
        else:
            yield round(figure, DIGITS)
