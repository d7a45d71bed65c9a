"""``nae-monitor nla inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.configuration import JsonOption
from nae_monitor.cli.terminal import json_line, output, printable, quiet_libraries
from nae_monitor.settings import EMBEDDED_AR, EMBEDDED_AV

if TYPE_CHECKING:
    from nae_monitor.decode import ArCheckpoint, AvCheckpoint


def inspect(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(help="embedded/…, directory or hub id; the embedded pair when left out."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what checkpoints promise, or everything that is wrong with them.

    No weights are loaded: headers, sidecar, tokenizer and prompts are read and checked.
    """
    from nae_monitor.decode.contract import SIDECAR
    from nae_monitor.errors import CheckpointError, Problem
    from nae_monitor.models import resolve_nla

    quiet_libraries()
    problems: list[Problem] = []
    for name in checkpoints or [EMBEDDED_AV, EMBEDDED_AR]:
        directory = resolve_nla(name)
        try:
            contract = _contract(directory)
        except CheckpointError as error:
            problems += error.problems
            continue
        if as_json:
            json_line({"path": str(directory), **contract})
        else:
            _print(directory / SIDECAR, contract)
    if problems:
        raise CheckpointError(problems)


def _contract(directory: Path) -> dict[str, Any]:
    from nae_monitor.decode import open_ar, open_av
    from nae_monitor.decode.contract import SIDECAR
    from nae_monitor.models import resolve_target
    from nae_monitor.strict_yaml import read_document

    sidecar = directory / SIDECAR
    value = read_document(sidecar).value if sidecar.is_file() else None
    role = value.get("role") if isinstance(value, dict) else None
    if role in ("ar", "critic"):
        return _reconstructor(open_ar(directory, resolve_target))
    return _verbalizer(open_av(directory, resolve_target))


def _verbalizer(checkpoint: AvCheckpoint) -> dict[str, Any]:
    contract = checkpoint.contract
    return {
        "role": "verbalizer (AV)",
        "nla_id": contract.nla_id,
        **_weights(checkpoint),
        "layer_index": contract.layer_index,
        "reads": None if contract.layer is None else f"hidden_states[{contract.layer}]",
        "injection_scale": contract.injection_scale,
        "marker": f"{contract.injection_char} = token {contract.injection_token_id}",
        "prompt": contract.prompt_template,
        "prompt_tokens": len(checkpoint.prompt_ids),
    }


def _reconstructor(checkpoint: ArCheckpoint) -> dict[str, Any]:
    contract, reference = checkpoint.contract, checkpoint.reference
    bank = None if reference is None or reference.bank is None else len(reference.bank)
    return {
        "role": "reconstructor (AR)",
        "nla_id": contract.nla_id,
        **_weights(checkpoint),
        "layer_index": contract.layer_index,
        "predicts": f"hidden_states[{contract.layer}]",
        "prompt": contract.prompt_template,
        "suffix_tokens": len(contract.suffix_ids),
        "fve": "unknown: no fidelity.safetensors" if reference is None else "measurable",
        "unit_variance": None if reference is None else round(reference.variance, 4),
        "reference_vectors": bank,
    }


def _weights(checkpoint: AvCheckpoint | ArCheckpoint) -> dict[str, Any]:
    source, contract = checkpoint.source, checkpoint.contract
    adapter = source.adapter is not None and source.lora is not None
    rank = source.lora.rank if source.lora else None
    return {
        "form": f"LoRA of rank {rank} on {contract.base_model}" if adapter else "full weights",
        "architecture": type(source.config).__name__.removesuffix("Config"),
        "d_model": contract.d_model,
        "embedding_scale": source.embedding_scale,
    }


def _print(sidecar: Path, contract: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=printable(str(sidecar)), title_justify="left", show_header=False, box=None)
    for key, value in contract.items():
        shown = "not said" if value is None else printable(str(value))
        table.add_row(Text(key.replace("_", " "), style="bold"), Text(shown))
    output().print(table, soft_wrap=True)
