"""``nla``: look into a Natural Language Autoencoder, train one, evaluate one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.nla_calibrate import calibrate
from nae_monitor.cli.nla_export import export
from nae_monitor.cli.nla_inspect import inspect
from nae_monitor.cli.nla_train import evaluate, train
from nae_monitor.cli.terminal import json_line, output, printable, quiet_libraries
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV, NlaSettings, TargetSettings

if TYPE_CHECKING:
    import torch

    from nae_monitor.decode import Nla
    from nae_monitor.records import Decoding

nla_app = typer.Typer(no_args_is_help=True, help="The Natural Language Autoencoder (NLA).")
nla_app.command()(train)
nla_app.command()(evaluate)
nla_app.command()(export)
nla_app.command()(calibrate)
nla_app.command()(inspect)


@dataclass(frozen=True, eq=False, slots=True)
class _Row:
    """One vector to decode, and what it is called."""

    name: str
    vector: torch.Tensor  # [d]
    token: str


@nla_app.command()
def decode(
    recording: Annotated[
        Path | None, typer.Argument(help="A recording, or a Parquet file with vectors.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="A user message to read instead.")] = None,
    position: Annotated[
        list[int] | None,
        typer.Option(help="Token position in the prompt, from 0; -1 is the last. Repeatable."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of a recording to decode.")] = 16,
    av: Annotated[str, typer.Option(help="Verbalizer: embedded/…, directory or hub id.")] = (
        EMBEDDED_AV
    ),
    ar: Annotated[str, typer.Option(help="Reconstructor, likewise.")] = EMBEDDED_AR,
    target: Annotated[str, typer.Option(help="The model that reads --prompt.")] = (
        TargetSettings().model
    ),
    as_json: JsonOption = False,
) -> None:
    """Decode activations: the explanation, and how well it reconstructs the vector.

    FVE, cosine and rank say how faithful a text is to the vector, not whether it is true.
    """
    from nae_monitor.decode import load_nla
    from nae_monitor.models import resolve_nla, resolve_target

    if (recording is None) == (prompt is None):
        raise typer.BadParameter("name either a recording or --prompt TEXT")
    quiet_libraries()
    recorded = None if recording is None else _recorded(recording, limit)
    settings = NlaSettings(av=av, ar=ar)
    nla = load_nla(resolve_nla(av), resolve_nla(ar), settings=settings, resolve_base=resolve_target)
    rows = recorded or _computed(target, prompt or "", position or [-1], nla)
    for row, decoding in _decoded(nla, rows, settings.batch_size):
        if as_json:
            json_line(_as_json(row, decoding))
        else:
            _print(row, decoding)


def _recorded(path: Path, limit: int) -> list[_Row]:
    from itertools import islice

    from nae_monitor.errors import RecordingError
    from nae_monitor.recording import open_recordings

    opened = open_recordings([path])
    if len({recording.d_model for recording in opened}) > 1:
        raise RecordingError(f"{path}: holds recordings of different widths; name one of them")
    activations = (a for recording in opened for a in recording.activations())
    rows = [
        _Row(f"{a.request.request_id} token {a.position}", a.vector.float(), a.token)
        for a in (recorded.activation for recorded in islice(activations, limit))
    ]
    if not rows:
        raise RecordingError(f"{path}: holds no activation")
    return rows


def _computed(target: str, prompt: str, positions: list[int], nla: Nla) -> list[_Row]:
    """The residual stream of an ordinary forward pass over the prompt, at the NLA's layer."""
    import torch

    from nae_monitor.cli.generate import chat_inputs, refuse_too_long
    from nae_monitor.errors import CheckpointError, Mark, Problem
    from nae_monitor.models import load_target

    loaded = load_target(target)
    if loaded.d_model != nla.d_model or loaded.layer_count <= nla.layer:
        message = (
            f"reads layer {nla.layer} and width {nla.d_model}; {target} has "
            f"{loaded.layer_count} layers of width {loaded.d_model}"
        )
        mend = "name the NLA pair that was trained for this model"
        raise CheckpointError([Problem(Mark(nla.nla_id), message, mend)])
    inputs = chat_inputs(loaded, prompt)
    ids = inputs["input_ids"][0].tolist()
    refuse_too_long(loaded, len(ids), 0, "--prompt")
    chosen = [_place(position, len(ids)) for position in positions]
    with torch.no_grad():
        states = loaded.model(**inputs, output_hidden_states=True).hidden_states[nla.layer][0]
    return [
        _Row(f"token {i}", states[i].float(), loaded.tokenizer.decode([ids[i]])) for i in chosen
    ]


def _place(position: int, tokens: int) -> int:
    place = position + tokens if position < 0 else position
    if not 0 <= place < tokens:
        raise typer.BadParameter(f"--position {position}: the prompt has {tokens} tokens")
    return place


def _decoded(nla: Nla, rows: list[_Row], batch_size: int) -> Iterator[tuple[_Row, Decoding]]:
    import torch

    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        yield from zip(batch, nla.decode(torch.stack([r.vector for r in batch])), strict=True)


def _as_json(row: _Row, decoding: Decoding) -> dict[str, Any]:
    return {
        "row": row.name,
        "token": row.token,
        "explanation": decoding.text,
        "closed": decoding.closed,
        "fve": decoding.fve,
        "cosine": decoding.cosine,
        "rank": decoding.rank,
        "bank_size": decoding.bank_size,
        "nla_id": decoding.nla_id,
    }


def _print(row: _Row, decoding: Decoding) -> None:
    from rich.text import Text

    console = output()
    figures = f"FVE {_figure(decoding.fve)}, cosine {_figure(decoding.cosine)}"
    if decoding.rank is not None:
        figures += f", rank {decoding.rank} of {decoding.bank_size + 1}"
    name = Text(f"{printable(row.name)} {printable(repr(row.token))}", style="bold")
    console.print(name, Text(figures, style="dim"), soft_wrap=True)
    text = Text("  " + printable(decoding.text))
    if not decoding.closed:
        text.append(" (cut off: the closing tag never came)", style="yellow")
    console.print(text, soft_wrap=True)


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
