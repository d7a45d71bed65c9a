"""Low-rank adapters on a frozen base (Hu et al. 2021), through peft, with resumable state.

The optimizer state is saved as safetensors, so that resuming never unpickles anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nae_monitor.errors import InputDataError
from nae_monitor.train.files import replacing

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Shape of the adapters and of their training."""

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 4e-4
    batch_size: int = 32
    warmup_steps: int = 50
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be above 0")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("warmup_steps and weight_decay must not be negative")


def add_adapters(model: nn.Module, options: LoraOptions, *, seed: int) -> Any:
    """Wrap every linear layer of ``model`` with trainable adapters in float32.

    They start where ``seed`` puts them, whatever the process drew before.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=LINEAR_LAYERS,
        bias="none",
        lora_dropout=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


@contextlib.contextmanager
def precision(model: nn.Module, device: torch.device, reduced: bool) -> Iterator[None]:
    """Run in bfloat16 where the machine multiplies it natively, float32 elsewhere."""
    if not reduced:
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model), torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run natively (AVX512-BF16, AMX, or a GPU that has them)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def schedule(step: int, total: int, options: LoraOptions) -> float:
    """Learning rate at ``step``: linear warm-up, then a cosine down to a tenth."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, total - options.warmup_steps)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(min(1.0, done) * torch.pi)).item())
    return options.learning_rate * (0.1 + 0.9 * cosine)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    step: int,
    **measured: str | float,
) -> None:
    """Write parameters, moments of the optimizer if there is one, and measurements, atomically.

    Raises:
        ConfigurationError: the file cannot be written; an older state stays as it was.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trainable(model).items():
        tensors[f"parameter.{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items() if optimizer else ():
            tensors[f"moment.{key}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    with replacing(path) as temporary:
        about = json.dumps({"step": step, **measured})
        save_file(tensors, temporary, metadata={"state": about})


def state_facts(path: Path) -> dict[str, Any]:
    """The step of a saved state, and what was measured there.

    Raises:
        InputDataError: as :func:`load_state`.
    """
    return _opened(path)[0]


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Restore what :func:`save_state` wrote; returns the step to go on from.

    Raises:
        InputDataError: missing, damaged, or the state of another recipe or model.
    """
    facts, tensors = _opened(path, tensors=True)
    for name, parameter in trainable(model).items():
        saved = tensors.get(f"parameter.{name}")
        if saved is None or saved.shape != parameter.shape:
            found = "missing" if saved is None else f"{tuple(saved.shape)}"
            raise InputDataError(
                f"{path}: {name} is {found}, expected {tuple(parameter.shape)}; it is the state "
                "of another recipe or model"
            )
        parameter.data.copy_(saved)
        if optimizer is not None:
            _restore_moments(optimizer, parameter, name, tensors)
    return int(facts["step"])


def _opened(path: Path, *, tensors: bool = False) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Facts of a state, and its tensors where they are wanted."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(json.loads(file.metadata()["state"]))
            int(facts["step"])
            names = file.keys() if tensors else ()
            return facts, {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise InputDataError(f"{path} is missing; run that training stage first") from error
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        mend = "delete it to train that half again"
        raise InputDataError(f"{path} is damaged or no training state ({mend})") from error


def _restore_moments(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    name: str,
    tensors: dict[str, torch.Tensor],
) -> None:
    """Adam's moments of one parameter; ``step`` stays on the CPU, where torch keeps it."""
    moments = {
        key: tensors[f"moment.{key}.{name}"]
        for key in ("step", "exp_avg", "exp_avg_sq")
        if f"moment.{key}.{name}" in tensors
    }
    if moments:
        optimizer.state[parameter] = {
            k: v if k == "step" else v.to(parameter.device) for k, v in moments.items()
        }
