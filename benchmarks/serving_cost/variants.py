"""Ways to serve the same prompts: without a monitor, with ours in its placements, with peers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nae_monitor.alert import build_sinks
from nae_monitor.health import Health
from nae_monitor.models import Target, load_target
from nae_monitor.monitor import Monitor
from nae_monitor.placement_settings import IpcSettings
from nae_monitor.screen import Directions, write_directions
from nae_monitor.screen.directions import calibrated
from nae_monitor.settings import (
    BudgetSettings,
    CaptureSettings,
    DetectSettings,
    ScreenSettings,
    Settings,
    TargetSettings,
)
from nae_monitor.sink_settings import AlertSettings
from serving_cost.worker import instant_parts, worker_process

MODEL, LAYER, DIRECTIONS = "smollm2-135m-instruct", 20, 64
START_S = 120.0  # a worker imports torch first
BASE, OFF, SCREEN, IPC = "no monitor", "installed, off", "screen, inline", "screen, ipc"
IPC_HALF = "screen, ipc, half of all rows leave"
HIDDEN, HOOK, NNSIGHT = "output_hidden_states", "hook with .cpu()", "nnsight"
ON_A_COPY = (HIDDEN, NNSIGHT)  # both leave hooks on a model for good
Generate = Callable[[torch.Tensor, int, Any], None]  # ids [S, T], new tokens, streamer


@dataclass(frozen=True, slots=True)
class Variant:
    """One way. ``around`` is entered before each timed generation, and left behind it."""

    name: str
    generate: Generate
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    streams: bool = True  # whether its tokens can be timed one by one


class Bench:
    """The model, and what the variants opened; close it by leaving its ``with`` block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._opened = ExitStack()
        self._has_worker = False
        self.target: Target = load_target(MODEL)
        self.directions = random_directions(self.target.d_model)
        self.monitors: dict[str, Monitor] = {}
        self._file = directory / "screen.safetensors"
        write_directions(self._file, self.directions)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def open(self, name: str) -> Variant:
        """Set a variant up; ImportError where a peer is not installed."""
        match name:
            case "no monitor":
                return Variant(name, self.generate)
            case "installed, off":
                self._monitor(self._settings(name), name)
                return Variant(name, self.generate)
            case "output_hidden_states":
                return Variant(name, _with_hidden_states())
            case "hook with .cpu()":
                return Variant(name, self.generate, self._plain_hook)
            case "nnsight":
                return Variant(name, _by_nnsight(), streams=False)
        settings = self._settings(name)
        if settings.capture.placement == "ipc" and not self._has_worker:
            self._opened.enter_context(worker_process(settings, self.directions))
            self._has_worker = True
        monitor = self._monitor(settings, name)
        with self._watching(monitor):
            pass  # the self-test of a first watch is no part of serving
        return Variant(name, self.generate, lambda: self._watching(monitor))

    def generate(self, ids: torch.Tensor, new_tokens: int, streamer: Any) -> None:
        """As a server calls it."""
        greedy(self.target.model, ids, new_tokens, streamer)

    @contextmanager
    def _watching(self, monitor: Monitor) -> Iterator[None]:
        with monitor.watch(self.target.model, self.target.tokenizer):
            yield

    def _monitor(self, settings: Settings, name: str) -> Monitor:
        if settings.capture.placement == "ipc":
            monitor = Monitor.from_settings(settings)
        else:
            health = Health()
            parts = instant_parts(settings, self.target.d_model, LAYER, health)
            parts = replace(parts, directions=self.directions)
            sinks = build_sinks(settings.alert, settings.privacy, health)
            monitor = Monitor(settings, parts, sinks, health)
        self._opened.callback(monitor.close, 2.0)
        self.monitors[name] = monitor
        return monitor

    def _settings(self, name: str) -> Settings:
        placement = "ipc" if name in (IPC, IPC_HALF) else "inline"
        budget = BudgetSettings()
        share = {"decode_share": 0.05, "random_share": 0.1}
        if name == IPC_HALF:
            budget = BudgetSettings(decodes_per_s=1e9, per_request=10**9)
            share = {"decode_share": 0.5, "random_share": 1.0}
        elif placement == "inline":
            budget = BudgetSettings(per_request=0)  # decoding off: no worker to leave it to
        endpoint = f"ipc://{self._directory}/run/worker.sock"
        return Settings(
            target=TargetSettings(MODEL),
            capture=CaptureSettings(placement=placement),  # type: ignore[arg-type]
            screen=ScreenSettings(directions=str(self._file), budget=budget, **share),
            detect=DetectSettings(encoder=None),
            alert=AlertSettings(()),
            ipc=IpcSettings((endpoint,), connect_s=START_S, liveness_s=60.0),
        )

    @contextmanager
    def _plain_hook(self) -> Iterator[None]:
        kept: list[torch.Tensor] = []

        def keep(_module: Any, _arguments: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            kept.append(hidden.detach().to(torch.float16).cpu())

        handle = self.target.model.model.layers[LAYER - 1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()


def random_directions(width: int) -> Directions:
    """What is measured does not depend on where they point."""
    random = torch.Generator().manual_seed(0)
    names = [f"direction-{number}" for number in range(DIRECTIONS)]
    return calibrated(
        names,
        torch.randn(DIRECTIONS, width, generator=random),
        torch.randn(20_000, width, generator=random),
        torch.arange(20_000) % 2 == 0,
        base_model=MODEL,
        layer=LAYER,
        provenance={},
    )


def greedy(model: Any, ids: torch.Tensor, new_tokens: int, streamer: Any, **options: Any) -> None:
    """Generate ``new_tokens`` behind each prompt, no fewer."""
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        streamer=streamer,
        **options,
    )


def _with_hidden_states() -> Generate:
    """All layers of all steps, as transformers gives them."""
    return partial(
        greedy, load_target(MODEL).model, output_hidden_states=True, return_dict_in_generate=True
    )


def _by_nnsight() -> Generate:
    """The block's output of every step, saved; on a copy, because nnsight wraps the model."""
    import nnsight

    warnings.filterwarnings("ignore", module=__name__)  # the forms of its own documentation
    target = load_target(MODEL)
    wrapped = nnsight.LanguageModel(target.model, tokenizer=target.tokenizer)

    def generate(ids: torch.Tensor, new_tokens: int, streamer: Any) -> None:
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        with wrapped.generate(ids, **options) as tracer:
            rows = nnsight.save([])
            with tracer.all():
                rows.append(wrapped.model.layers[LAYER - 1].output)
        if len(rows) != new_tokens:
            raise RuntimeError(f"nnsight saw {len(rows)} of {new_tokens} passes")

    return generate


def patches(model: Any) -> Sequence[str]:
    """Every hook of a module, and every method put into the model's own dictionary."""
    found = [name for name in vars(model) if callable(getattr(type(model), name, None))]
    for name, module in model.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks"):
            found += [f"{name}.{kind}"] * len(getattr(module, kind))
    return found
