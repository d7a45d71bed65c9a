"""Open NLA checkpoints: every rule of the contract is a start-up check, all reported at once."""

from __future__ import annotations

from pathlib import Path

from nae_monitor.decode.contract import ArCheckpoint, ArContract, AvCheckpoint
from nae_monitor.decode.side_files import read_head, read_reference
from nae_monitor.decode.sidecar import AR_LAYER_KEYS, Fields, open_sidecar, read_ar, read_av
from nae_monitor.decode.tokens import av_prompt, check_ar_prompt, load_tokenizer
from nae_monitor.decode.weights import ResolveBase, decoder_config, find_weights, open_source
from nae_monitor.errors import CheckpointError, Mark, Problem


def open_pair(
    av_dir: Path,
    ar_dir: Path,
    resolve_base: ResolveBase,
    *,
    target_d_model: int | None = None,
    target_layer: int | None = None,
) -> tuple[AvCheckpoint, ArCheckpoint]:
    """Check both directories, and that verbalizer, reconstructor and target agree.

    Args:
        av_dir: verbalizer directory, official or adapter form.
        ar_dir: reconstructor directory.
        resolve_base: base model name of an adapter to its local directory; may raise
            ConfigurationError.
        target_d_model: width of the monitored model's residual stream.
        target_layer: index into ``hidden_states`` that will be captured.

    Raises:
        CheckpointError: with every problem of both directories.
    """
    problems: list[Problem] = []
    av = _open_av(av_dir, resolve_base, problems)
    ar = _open_ar(ar_dir, resolve_base, problems)
    if av and ar:
        _check_pair(av, ar, problems)
    for checkpoint in (av, ar):
        if checkpoint:
            _check_target(checkpoint, target_d_model, target_layer, problems)
    if problems or av is None or ar is None:
        raise CheckpointError(problems)
    return av, ar


def open_av(directory: Path, resolve_base: ResolveBase) -> AvCheckpoint:
    """Open a verbalizer alone; errors as :func:`open_pair`."""
    problems: list[Problem] = []
    checkpoint = _open_av(directory, resolve_base, problems)
    if problems or checkpoint is None:
        raise CheckpointError(problems)
    return checkpoint


def open_ar(directory: Path, resolve_base: ResolveBase) -> ArCheckpoint:
    """Open a reconstructor alone; errors as :func:`open_pair`."""
    problems: list[Problem] = []
    checkpoint = _open_ar(directory, resolve_base, problems)
    if problems or checkpoint is None:
        raise CheckpointError(problems)
    return checkpoint


def read_ar_contract(directory: Path) -> ArContract:
    """The sidecar of a reconstructor alone: for a process that captures and decodes nothing.

    Raises:
        CheckpointError: every problem of the sidecar.
    """
    problems: list[Problem] = []
    opened = open_sidecar(directory, "ar", "critic", problems)
    contract = read_ar(*opened, directory) if opened is not None else None
    if problems or contract is None:
        raise CheckpointError(problems)
    return contract


def _open_av(
    directory: Path, resolve_base: ResolveBase, problems: list[Problem]
) -> AvCheckpoint | None:
    opened = open_sidecar(directory, "av", "actor", problems)
    if opened is None:
        return None
    fields, name = opened
    contract = read_av(fields, name, directory)
    base_model = contract.base_model if contract else fields.get(("base_model",))
    place = find_weights(directory, base_model, resolve_base, problems)
    if place is None:
        return None
    source = open_source(*place, None, problems)
    tokenizer = load_tokenizer(place[0], directory, problems)
    if contract is None:
        return None
    if source is not None:
        _check_width(fields, contract.d_model, source.config)
    prompt = av_prompt(contract, tokenizer, fields) if tokenizer else None
    if source is None or prompt is None:
        return None
    return AvCheckpoint(contract, source, tokenizer, *prompt)


def _open_ar(
    directory: Path, resolve_base: ResolveBase, problems: list[Problem]
) -> ArCheckpoint | None:
    opened = open_sidecar(directory, "ar", "critic", problems)
    if opened is None:
        return None
    fields, name = opened
    contract = read_ar(fields, name, directory)
    base_model = contract.base_model if contract else fields.get(("base_model",))
    head = read_head(directory, contract.d_model, problems) if contract else None
    reference = read_reference(directory, contract.d_model, problems) if contract else None
    place = find_weights(directory, base_model, resolve_base, problems)
    if place is None:
        return None
    source = open_source(*place, contract.layer if contract else None, problems)
    tokenizer = load_tokenizer(place[0], directory, problems)
    if contract is None:
        return None
    if source is not None:
        _check_width(fields, contract.d_model, source.config)
        _check_depth(fields, contract.layer, place[1] is not None, source.config)
    if tokenizer is not None:
        check_ar_prompt(contract, tokenizer, fields, require_bos=place[1] is None)
    if source is None or tokenizer is None or head is None:
        return None
    return ArCheckpoint(contract, source, tokenizer, head, reference)


def _check_width(fields: Fields, d_model: int, config: object) -> None:
    width = decoder_config(config).hidden_size
    if width != d_model:
        text = f"is {d_model}, but the weights have hidden_size {width}"
        fields.problem(("d_model",), text, "sidecar and weights must match", "d-model")


def _check_depth(fields: Fields, layer: int, is_adapter: bool, config: object) -> None:
    """As many blocks as ``layer``: exactly, in an official directory; at least, in a base."""
    blocks = decoder_config(config).num_hidden_layers
    if blocks == layer:
        return
    index = layer - 1
    text = f"is {index}: blocks 0..{index} make {layer}, but config.json has {blocks}"
    mend = "the base model is too shallow"
    if not is_adapter:
        mend = f"an official directory is already cut: its config.json must say {layer}"
    fields.problem(fields.present(AR_LAYER_KEYS)[0], text, mend, "depth")


def _check_pair(av: AvCheckpoint, ar: ArCheckpoint, problems: list[Problem]) -> None:
    where = Mark(ar.contract.file)
    if av.contract.d_model != ar.contract.d_model:
        text = f"d_model is {ar.contract.d_model}, the verbalizer's is {av.contract.d_model}"
        problems.append(Problem(where, text, "use a pair trained together", "pair-d-model"))
    if av.contract.layer not in (None, ar.contract.layer):
        mine, other = ar.contract.layer_index, av.contract.layer_index
        text = f"the layer index is {mine}, the verbalizer's is {other}"
        problems.append(Problem(where, text, "use a pair trained together", "pair-layer"))


def _check_target(
    checkpoint: AvCheckpoint | ArCheckpoint,
    d_model: int | None,
    layer: int | None,
    problems: list[Problem],
) -> None:
    contract = checkpoint.contract
    where = Mark(contract.file)
    mend = "use an NLA trained for this model"
    if d_model is not None and contract.d_model != d_model:
        text = f"d_model is {contract.d_model}, the target model's is {d_model}"
        problems.append(Problem(where, text, mend, "target-d-model"))
    if layer is not None and contract.layer not in (None, layer):
        text = (
            f"the layer index is {contract.layer_index}, which is hidden_states[{contract.layer}]; "
            f"the target is captured at hidden_states[{layer}]"
        )
        problems.append(Problem(where, text, mend, "target-layer"))
