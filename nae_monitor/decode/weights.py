"""Find and load a role's weights: local directories only, safetensors only, no remote code."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from nae_monitor.decode.contract import WeightSource
from nae_monitor.decode.lora import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_lora,
    merge_lora,
    read_lora_config,
)
from nae_monitor.errors import CheckpointError, ConfigurationError, Mark, Problem
from nae_monitor.models.progress import quiet_loading

ResolveBase = Callable[[str], Path]
FINAL_NORMS = ("norm", "final_layernorm", "ln_f")
# Endings of the parameters that a reconstructor has no use for and official ones do not ship.
NOT_OF_A_TRUNK = ("lm_head.weight", *(f"model.{name}.weight" for name in FINAL_NORMS))
PER_BLOCK_LISTS = ("layer_types", "no_rope_layers", "sliding_window_pattern")
EMBEDDING_KEYS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
# Directions for the screen stage, which reads them.
SCREENS = ("screen.safetensors", "screen-contrast.safetensors")
_SIDE_FILES = ("value_head.safetensors", "fidelity.safetensors", *SCREENS, ADAPTER_WEIGHTS)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def find_weights(
    directory: Path, base_model: str | None, resolve_base: ResolveBase, problems: list[Problem]
) -> tuple[Path, Path | None] | None:
    """The directory of the full weights and, in the adapter form, the adapter file."""
    adapter = directory / ADAPTER_WEIGHTS
    full = weight_files(directory)
    where = Mark(str(directory))
    if adapter.is_file():
        if full:
            text = f"holds both {ADAPTER_WEIGHTS} and full weights"
            problems.append(Problem(where, text, "keep one form", "form-ambiguous"))
            return None
        base = _resolve(directory, base_model, resolve_base, problems)
        return (base, adapter) if base else None
    if full:
        return directory, None
    if any(f.suffix in _PICKLE_SUFFIXES for f in directory.iterdir()):
        text, code = "holds pickled weights only", "weights-pickled"
        problems.append(Problem(where, text, "convert them to safetensors", code))
    else:
        text = f"holds neither model safetensors nor {ADAPTER_WEIGHTS}"
        problems.append(Problem(where, text, "", "weights-missing"))
    return None


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a full model, sorted."""
    found = directory.glob("*.safetensors") if directory.is_dir() else ()
    return sorted(f for f in found if f.name not in _SIDE_FILES)


def _resolve(
    directory: Path, base_model: str | None, resolve_base: ResolveBase, problems: list[Problem]
) -> Path | None:
    where = Mark(str(directory))
    if base_model is None:
        text = "base_model is missing from the sidecar"
        problems.append(Problem(where, text, "the adapter form names its base", "base-missing"))
        return None
    try:
        base = resolve_base(base_model)
    except ConfigurationError as error:
        text = f"base_model {base_model!r} cannot be resolved: {error}"
        problems.append(Problem(where, text, "", "base-unresolved"))
        return None
    if weight_files(base):
        return base
    text = f"base_model {base_model!r} has no safetensors in {base}"
    problems.append(Problem(where, text, "", "base-weights"))
    return None


def open_source(
    weights: Path, adapter: Path | None, blocks: int | None, problems: list[Problem]
) -> WeightSource | None:
    """Check configuration, safetensors headers and adapter without loading any weights.

    Args:
        weights: directory of the full model.
        adapter: adapter file, or None.
        blocks: how many blocks of an adapter's base will be kept; None keeps all. An official
            directory is never cut: its config.json must already say as many.
        problems: where problems are noted.
    """
    config = _read_config(weights, problems)
    readable = [_is_readable(file, problems) for file in weight_files(weights)]
    lora = read_lora_config(adapter.with_name(ADAPTER_CONFIG), problems) if adapter else None
    if config is None or not all(readable) or (adapter and lora is None):
        return None
    if adapter and blocks and blocks < decoder_config(config).num_hidden_layers:
        config = truncated(config, blocks)
    skeleton = _skeleton(config)
    if adapter and lora:
        shapes = {name: tuple(p.shape) for name, p in skeleton.named_parameters()}
        check_lora(adapter, lora.rank, shapes, problems)
    scale = float(getattr(skeleton.get_input_embeddings(), "scalar_embed_scale", 1.0))
    return WeightSource(weights, config, scale, adapter, lora)


def decoder_config(config: Any) -> Any:
    """The text decoder's configuration, also of a multimodal wrapper."""
    return config.get_text_config(decoder=True)


def truncated(config: Any, blocks: int) -> Any:
    """A copy of ``config`` with the first ``blocks`` blocks only."""
    config = copy.deepcopy(config)
    text = decoder_config(config)
    for name in PER_BLOCK_LISTS:
        if isinstance(value := getattr(text, name, None), list | tuple):
            setattr(text, name, value[:blocks])
    text.num_hidden_layers = blocks
    return config


def load_causal_lm(
    source: WeightSource,
    *,
    dtype: torch.dtype,
    device: torch.device,
    unused: tuple[str, ...] = (),
) -> Any:
    """Load a role's model, adapter merged, in evaluation mode.

    Args:
        source: the checked weights.
        dtype: precision of the loaded model; an adapter is merged in float32 all the same.
        device: where the model goes.
        unused: endings of parameter names that the checkpoint may lack.

    Raises:
        CheckpointError: tensors are missing, misshapen or unreadable.
    """
    try:
        with quiet_loading():
            model, info = AutoModelForCausalLM.from_pretrained(
                source.directory,
                config=source.config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        text = f"the weights cannot be loaded: {type(error).__name__}: {error}"
        raise CheckpointError([Problem(Mark(str(source.directory)), text, "", "load")]) from error
    missing = [key for key in info["missing_keys"] if not key.endswith(unused)]
    if missing:
        text = f"the weights lack {', '.join(sorted(missing)[:4])} ({len(missing)} in all)"
        raise CheckpointError([Problem(Mark(str(source.directory)), text, "", "load-missing")])
    if source.adapter and source.lora:
        merge_lora(model, source.adapter, source.lora)
    return model.to(device).eval().requires_grad_(False)


def load_trunk(source: WeightSource, *, dtype: torch.dtype, device: torch.device) -> Any:
    """The text decoder alone, without final norm; official reconstructors ship neither it nor
    the language-model head."""
    model = load_causal_lm(source, dtype=dtype, device=device, unused=NOT_OF_A_TRUNK)
    trunk = model.get_decoder()
    setattr(trunk, final_norm_name(trunk, source), torch.nn.Identity())
    return trunk


def final_norm_name(trunk: Any, source: WeightSource) -> str:
    """The attribute that holds a decoder's final norm.

    Raises:
        CheckpointError: an architecture that calls it otherwise.
    """
    name = next((n for n in FINAL_NORMS if hasattr(trunk, n)), None)
    if name is None:
        text = f"{type(trunk).__name__} has no final norm known to this package"
        raise CheckpointError([Problem(Mark(str(source.directory)), text, "", "trunk-norm")])
    return name


def embedding_rows(source: WeightSource, token_ids: tuple[int, ...]) -> torch.Tensor:
    """Only the named rows of the embedding table, [T, d] float32, scaled as the model scales them.

    Raises:
        CheckpointError: no single embedding table among the safetensors.
    """
    found = [
        (file, key)
        for file in weight_files(source.directory)
        for key in _keys(file)
        if key.endswith(EMBEDDING_KEYS) and "vision" not in key
    ]
    if len(found) != 1:
        text = f"expected one input embedding table, found {len(found)}"
        raise CheckpointError([Problem(Mark(str(source.directory)), text, "", "embedding-table")])
    file, key = found[0]
    with safe_open(str(file), framework="pt") as tensors:
        table = tensors.get_slice(key)
        rows = torch.cat([table[i : i + 1] for i in token_ids])
    return rows.float() * source.embedding_scale


def _read_config(directory: Path, problems: list[Problem]) -> Any:
    path = directory / "config.json"
    try:
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if _wants_remote_code(path):
            text, code = "auto_map asks for code from the checkpoint", "remote-code"
        else:
            text, code = f"cannot be read ({type(error).__name__})", "config-unreadable"
        mend = "only architectures that transformers knows are loaded"
        problems.append(Problem(Mark(str(path)), text, mend, code))
        return None
    if getattr(decoder_config(config), "embedding_multiplier", 1.0) not in (None, 1.0):
        text = "embedding_multiplier would rescale the injected vector inside the model"
        problems.append(Problem(Mark(str(path)), text, "", "embedding-multiplier"))
        return None
    return config


def _wants_remote_code(path: Path) -> bool:
    try:
        return "auto_map" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _is_readable(file: Path, problems: list[Problem]) -> bool:
    try:
        return bool(_keys(file))
    except (OSError, SafetensorError):
        text = "is truncated or no safetensors file"
        problems.append(Problem(Mark(str(file)), text, "fetch it again", "weights-unreadable"))
        return False


def _keys(file: Path) -> list[str]:
    with safe_open(str(file), framework="pt") as tensors:
        return list(tensors.keys())


def _skeleton(config: Any) -> Any:
    """The model's modules without storage, for names and shapes."""
    with torch.device("meta"), quiet_loading():
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
