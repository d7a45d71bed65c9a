"""Write a pair in the released pairs' layout: full weights, which their public client loads.

An adapter is merged in float32; what is written is bfloat16 or float32. A verbalizer is a whole
model, a reconstructor its blocks alone without final norm and language-model head, beside
``value_head.safetensors`` (always float32). Fidelity statistics and the training record travel
along. Directories are built beside their place and renamed into it, and are opened and compared
with their source before that, so that what is there passes every check of the contract.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

from nae_monitor.decode.checkpoint import open_ar, open_av
from nae_monitor.decode.contract import (
    SIDECAR,
    ArCheckpoint,
    ArContract,
    AvCheckpoint,
    AvContract,
    WeightSource,
)
from nae_monitor.decode.merged_sidecar import official_sidecar
from nae_monitor.decode.older_readers import with_older_config_keys, with_older_tokenizer_keys
from nae_monitor.decode.side_files import FIDELITY, VALUE_HEAD
from nae_monitor.decode.tokens import PROBES, ar_prompt
from nae_monitor.decode.weights import (
    NOT_OF_A_TRUNK,
    final_norm_name,
    load_causal_lm,
)
from nae_monitor.errors import CheckpointError, ConfigurationError, Mark, ModelError, Problem
from nae_monitor.models.cache import sha256_file
from nae_monitor.models.progress import quiet_loading

DTYPES = (torch.bfloat16, torch.float32)
AV, AR = "av", "ar"  # the directories of a pair
CHECKSUMS = "SHA256SUMS"
_TRAVELLERS = (FIDELITY, "training.json")
_CPU = torch.device("cpu")
_SAMPLES = (*PROBES, "Zoë: “no”, 日本語\t1234  ", "a <|im_end|></s> b", 'said "and then the')


def write_merged_pair(
    av: AvCheckpoint,
    ar: ArCheckpoint,
    directory: Path,
    *,
    dtype: torch.dtype,
    step: Callable[[str], None] = lambda _: None,
) -> tuple[Path, Path]:
    """Write both halves as ``directory/av`` and ``directory/ar``; both appear, or neither does.

    Args:
        av: an opened verbalizer, adapter or full form.
        ar: the reconstructor that belongs to it.
        directory: a new or empty directory.
        dtype: torch.bfloat16 or torch.float32.
        step: called with the name of each half as its work begins.

    Raises:
        ConfigurationError: ``directory`` holds something, or cannot be written.
        CheckpointError: weights that cannot be loaded, or files that would not be read back alike.
    """
    with _whole(directory) as (place, folder):
        step("verbalizer")
        _fill_av(av, folder / AV, dtype, ar.contract)
        step("reconstructor")
        _fill_ar(ar, folder / AR, dtype, av.contract)
    return place / AV, place / AR


def write_merged_av(checkpoint: AvCheckpoint, directory: Path, *, dtype: torch.dtype) -> Path:
    """Write a verbalizer alone; arguments and errors as :func:`write_merged_pair`."""
    with _whole(directory) as (place, folder):
        _fill_av(checkpoint, folder, dtype, None)
    return place


def write_merged_ar(checkpoint: ArCheckpoint, directory: Path, *, dtype: torch.dtype) -> Path:
    """Write a reconstructor alone; arguments and errors as :func:`write_merged_pair`."""
    with _whole(directory) as (place, folder):
        _fill_ar(checkpoint, folder, dtype, None)
    return place


def _fill_av(
    checkpoint: AvCheckpoint, folder: Path, dtype: torch.dtype, partner: ArContract | None
) -> None:
    contract = checkpoint.contract
    if contract.layer is None and partner:
        contract = replace(contract, layer=partner.layer)
    folder.mkdir(exist_ok=True)
    model = _merged(checkpoint.source, dtype, ())
    _write_model(model, model.state_dict(), folder)
    _write_tokenizer(checkpoint.tokenizer, folder, uses_template=True)
    _finish(folder, official_sidecar("av", contract, partner), contract)
    again = open_av(folder, _no_base)
    same_prompt = again.prompt_ids == checkpoint.prompt_ids
    if not same_prompt or _promise(again.contract) != _promise(contract):
        raise _changed(contract)


def _fill_ar(
    checkpoint: ArCheckpoint, folder: Path, dtype: torch.dtype, partner: AvContract | None
) -> None:
    folder.mkdir(exist_ok=True)
    model = _merged(checkpoint.source, dtype, NOT_OF_A_TRUNK)
    _write_model(model, _trunk_state(model, checkpoint.source), folder)
    save_file({"weight": checkpoint.head.contiguous()}, folder / VALUE_HEAD, {"format": "pt"})
    _write_tokenizer(checkpoint.tokenizer, folder, uses_template=False)
    _finish(folder, official_sidecar("ar", partner, checkpoint.contract), checkpoint.contract)
    again = open_ar(folder, _no_base)
    same_prompts = all(
        ar_prompt(again.contract, again.tokenizer, text)
        == ar_prompt(checkpoint.contract, checkpoint.tokenizer, text)
        for text in _SAMPLES
    )
    if not same_prompts or _promise(again.contract) != _promise(checkpoint.contract):
        raise _changed(checkpoint.contract)


def _merged(source: WeightSource, dtype: torch.dtype, unused: tuple[str, ...]) -> Any:
    """The model in ``dtype``; an adapter's sum is rounded once, from float32."""
    if getattr(source.config, "quantization_config", None) is not None:
        text, mend = "is quantised, so nothing can be merged into it", "name the full model"
        raise CheckpointError([Problem(Mark(str(source.directory)), text, mend, "merged-base")])
    loaded_as = torch.float32 if source.adapter else dtype
    return load_causal_lm(source, dtype=loaded_as, device=_CPU, unused=unused).to(dtype)


def _trunk_state(model: Any, source: WeightSource) -> dict[str, torch.Tensor]:
    """The weights of a reconstructor: its norm and head were never trained, nor perhaps loaded."""
    trunk = model.get_decoder()
    left_out = (getattr(trunk, final_norm_name(trunk, source)), model.get_output_embeddings())
    prefixes = tuple(f"{name}." for name, part in model.named_modules() if part in left_out)
    return {key: value for key, value in model.state_dict().items() if not key.startswith(prefixes)}


def _write_model(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    with quiet_loading():
        model.save_pretrained(folder, state_dict=state)
    path = folder / "config.json"
    _write_json(path, with_older_config_keys(_read_json(path)))


def _write_tokenizer(tokenizer: Any, folder: Path, *, uses_template: bool) -> None:
    """Tokenizer files; a BOS that is named and never added loses its name.

    Args:
        tokenizer: of the role; stays as it is.
        folder: where to.
        uses_template: the role's prompt goes through the chat template, which may write the BOS.
    """
    with quiet_loading():
        tokenizer.save_pretrained(folder)
    added = list(tokenizer("x", add_special_tokens=True)["input_ids"])[:1]
    in_template = uses_template and "bos_token" in str(tokenizer.chat_template)
    names_bos = in_template or added == [tokenizer.bos_token_id]
    path = folder / "tokenizer_config.json"
    _write_json(path, with_older_tokenizer_keys(_read_json(path), names_bos=names_bos))


def _finish(folder: Path, sidecar: dict[str, Any], contract: AvContract | ArContract) -> None:
    """Sidecar, side files of the source, checksums; readable for everyone, as pairs are shared."""
    # ASCII, because the client reads it in whatever encoding its machine prefers.
    (folder / SIDECAR).write_text(yaml.safe_dump(sidecar, sort_keys=False), encoding="ascii")
    for name in _TRAVELLERS:
        if (source := Path(contract.file).with_name(name)).is_file():
            shutil.copyfile(source, folder / name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_file(path)}  {path.relative_to(folder)}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    for path in (*files, folder / CHECKSUMS):
        path.chmod(0o644)


@contextmanager
def _whole(directory: Path) -> Iterator[tuple[Path, Path]]:
    """The place, and a folder beside it that takes the place if the block ends well."""
    place = directory.resolve()
    partial = place.parent / f".{place.name}.{os.getpid()}.partial"
    try:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise _unwritable(directory, "is already there and not empty", "name a new directory")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had this number
        partial.mkdir()
        yield place, partial
        partial.replace(place)  # fails where something was put there meanwhile
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _unwritable(directory, f"cannot be written: {why}", "") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _promise(contract: AvContract | ArContract) -> AvContract | ArContract:
    """What must come back as it was: everything but where it lies."""
    return replace(contract, file="", base_model=None)


def _no_base(name: str) -> NoReturn:
    raise ModelError(f"{name}: a merged checkpoint has no base model")


def _changed(contract: AvContract | ArContract) -> CheckpointError:
    text = "its prompts are not encoded alike after the tokenizer was saved and read again"
    return CheckpointError([Problem(Mark(contract.file), text, "", "merged-changed")])


def _unwritable(directory: Path, text: str, mend: str) -> ConfigurationError:
    return ConfigurationError([Problem(Mark(str(directory)), text, mend, "merged-write")])


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
