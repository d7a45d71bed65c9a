"""Write a trained pair as two checkpoint directories in the adapter form of the contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from nae_monitor.train import ar, av
from nae_monitor.train.dataset import Examples
from nae_monitor.train.fit import read_metrics
from nae_monitor.train.lora import LINEAR_LAYERS, LoraOptions, trainable
from nae_monitor.train.recipe import MIN_BANK_VECTORS, Recipe

MIN_TOKEN_ROWS = 3  # a last-token mean of fewer rows would be a memory of its rows


def export_av(
    directory: Path,
    model: nn.Module,
    tokenizer: Any,
    recipe: Recipe,
    *,
    injection_scale: float,
    d_model: int,
    record: Mapping[str, Any],
) -> None:
    """Write the verbalizer: sidecar, adapters, chat template, training record, checksums."""
    directory.mkdir(parents=True, exist_ok=True)
    prompt = av.av_prompt(tokenizer, injection_scale)
    left, right = prompt.neighbours
    _sidecar(
        directory,
        {
            **_common(recipe, d_model, "av"),
            "extraction": {
                "layer_index": recipe.collect.layer - 1,  # of the block, from 0
                "injection_scale": round(injection_scale, 4),
            },
            "tokens": {
                "injection_char": av.MARKER,
                "injection_token_id": prompt.token_ids[prompt.marker],
                "injection_left_neighbor_id": left,
                "injection_right_neighbor_id": right,
            },
            "prompt_templates": {"av": av.AV_TEMPLATE},
        },
    )
    (directory / "chat_template.jinja").write_text(av.AV_CHAT_TEMPLATE)
    _adapters(directory, model, recipe.target, recipe.av.lora)
    _finish(directory, record)


def export_ar(
    directory: Path,
    trunk: ar.Trunk,
    tokenizer: Any,
    recipe: Recipe,
    train: Examples,
    *,
    record: Mapping[str, Any],
) -> None:
    """Write the reconstructor: sidecar, adapters, head, fidelity statistics, token means."""
    directory.mkdir(parents=True, exist_ok=True)
    d_model = trunk.head.out_features
    _sidecar(
        directory,
        {
            **_common(recipe, d_model, "ar"),
            "extraction": {"mse_scale": round(float(d_model) ** 0.5, 6)},
            "ar": {"num_hidden_layers": recipe.collect.layer - 1},
            "tokens": {"critic_suffix_ids": []},
            "prompt_templates": {"ar": ar.ar_template(tokenizer)},
        },
    )
    _adapters(directory, trunk.body, recipe.target, recipe.ar.lora)
    save_file(
        {"weight": trunk.head.weight.detach().float().cpu().contiguous()},
        directory / "value_head.safetensors",
    )
    save_file(
        fidelity_tensors(train, recipe.reference_vectors, recipe.seed) | token_means(train),
        directory / "fidelity.safetensors",
    )
    _finish(directory, record)


def fidelity_tensors(train: Examples, bank_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Mean m and variance of unit vectors at content positions, and the reference bank.

    m is not re-normalised. With fewer rows than the contract asks of a bank there is none, and
    ranks are unknown.
    """
    unit = normalize(train.vectors[train.content], dim=-1)
    mean = unit.mean(0)
    tensors = {"mean": mean, "variance": (unit - mean).square().sum(-1).mean()[None]}
    if len(unit) >= MIN_BANK_VECTORS:
        generator = torch.Generator().manual_seed(seed)
        bank = unit[torch.randperm(len(unit), generator=generator)[:bank_size]]
        tensors["bank"] = bank.to(torch.float16)
    return tensors


def token_means(train: Examples) -> dict[str, torch.Tensor]:
    """Mean unit vector of each last token seen often enough: the baseline a decode must beat."""
    unit = normalize(train.vectors, dim=-1)
    tokens, place, counts = torch.unique(train.token_ids, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(tokens), unit.shape[1]).index_add_(0, place, unit)
    means = sums / counts[:, None]
    kept = counts >= MIN_TOKEN_ROWS
    return {
        "token_ids": tokens[kept].to(torch.int32),
        "token_means": means[kept].to(torch.float16),
    }


def _common(recipe: Recipe, d_model: int, role: str) -> dict[str, Any]:
    return {
        "kind": "nla_model",
        "role": role,
        "schema_version": 1,
        "nla_id": recipe.nla_id,
        "base_model": recipe.target,
        "d_model": d_model,
    }


def _sidecar(directory: Path, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    (directory / "nla_meta.yaml").write_text(text, encoding="utf-8")


def _adapters(directory: Path, model: nn.Module, base: str, options: LoraOptions) -> None:
    tensors = {
        name[name.index("base_model.model.") :].replace(".default.", "."): p.detach()
        .to(torch.float16)
        .cpu()
        .contiguous()
        for name, p in trainable(model).items()
        if "lora_" in name
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": LINEAR_LAYERS,
        "task_type": None,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _finish(directory: Path, record: Mapping[str, Any]) -> None:
    (directory / "training.json").write_text(json.dumps(dict(record), indent=2) + "\n")
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != "SHA256SUMS")
    for file in files:
        file.chmod(0o644)  # safetensors writes for its owner alone; a pair is there to be shared
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}" for p in files]
    (directory / "SHA256SUMS").write_text("\n".join(lines) + "\n")


def training_record(recipe: Recipe, metrics: Path, train: Examples) -> dict[str, Any]:
    """What was trained on what, with the learning curve, for the directory's training.json."""
    return {
        "recipe": asdict(recipe),
        "train_rows": len(train),
        "train_documents": len(set(train.digests)),
        "torch": torch.__version__,
        "curve": read_metrics(metrics),
    }
