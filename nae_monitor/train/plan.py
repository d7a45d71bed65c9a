"""What a training run will do, settled and checked before any weight is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from nae_monitor.errors import ConfigurationError, Mark, ModelError, Problem
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.run import STAGES
from nae_monitor.train.target_checks import target_problems, without_weights

DEFAULT_RECIPES = {"cpu": "smollm2-135m-cpu", "cuda": "smollm2-135m-gpu"}
AUTO, ALL = "auto", "all"
DEPTH_SHARE = 2 / 3  # of the blocks, where the released pairs read


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe for one target on one device."""

    recipe: Recipe
    device: str


def make_plan(
    *,
    out: Path,
    target: str | None = None,
    layer: str | None = None,
    recipe: str | None = None,
    device: str = AUTO,
    stage: str = ALL,
) -> Plan:
    """Choose device, recipe and layer, and check the target by its configuration.

    Args:
        out: directory of the run.
        target: overrides the recipe's; a name as for ``resolve_target``.
        layer: ``auto`` (two thirds of the depth) or a number; None takes the recipe's, or
            ``auto`` where ``target`` overrides the model that the recipe's layer was chosen for.
        recipe: a file or a shipped recipe's name; None takes the default of the device.
        device: ``auto``, ``cpu`` or ``cuda``.
        stage: ``all`` or one of them.

    Raises:
        ConfigurationError: everything that is wrong, at once.
    """
    problems = [*_missing_packages(), *_unusable_place(out)]
    if stage not in (ALL, *STAGES):
        known = ", ".join((ALL, *STAGES))
        problems.append(Problem(Mark("--stage"), f"is {stage!r}", f"one of: {known}"))
    device = _device(device, problems)
    number = _number(layer, problems)
    chosen = _recipe(recipe or DEFAULT_RECIPES[device.partition(":")[0]], problems)
    name = target or (chosen.target if chosen else None)
    if chosen and layer is None and target in (None, chosen.target):
        number = chosen.collect.layer
    if name:
        number = _checked_layer(name, number, problems)
    if problems or chosen is None or name is None or number is None:
        raise ConfigurationError(problems)
    return Plan(for_target(chosen, name, number), device)


def for_target(recipe: Recipe, target: str, layer: int) -> Recipe:
    """``recipe`` for another target or layer; its ``nla_id`` then says which."""
    if (target, layer) == (recipe.target, recipe.collect.layer):
        return recipe
    name = Path(target).expanduser().resolve().name if Path(target).is_dir() else target
    slug = re.sub(r"[^a-z0-9.]+", "-", name.rpartition("/")[2].lower()).strip("-.")
    return replace(
        recipe,
        nla_id=f"{slug or 'target'}-l{layer}",
        target=target,
        collect=replace(recipe.collect, layer=layer),
    )


def automatic_layer(blocks: int) -> int:
    """The layer at two thirds of the depth, inside the range that can be trained."""
    return min(max(1, round(DEPTH_SHARE * blocks)), max(1, blocks - 1))


def _missing_packages() -> list[Problem]:
    missing = [name for name in ("peft", "accelerate") if find_spec(name) is None]
    mend = "pip install 'nae-monitor[train]'"
    return [Problem(Mark(name), "is not installed", mend) for name in missing]


def _unusable_place(out: Path) -> list[Problem]:
    first = next((p for p in (out, *out.parents) if p.exists()), out)
    if first.is_dir():
        return []
    return [Problem(Mark(str(first)), "is not a directory", "name another --out")]


def _device(device: str, problems: list[Problem]) -> str:
    if device == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        problems.append(Problem(Mark("--device"), f"is {device!r}", "auto, cpu, cuda or cuda:N"))
        return "cpu"
    if device != "cpu" and not torch.cuda.is_available():
        mend = "use --device cpu, or install a torch with CUDA"
        problems.append(Problem(Mark("--device"), "torch finds no CUDA device", mend))
    return device


def _number(layer: str | None, problems: list[Problem]) -> int | None:
    if layer is None or layer == AUTO:
        return None
    if re.fullmatch(r"\d{1,4}", layer):
        return int(layer)
    problems.append(Problem(Mark("--layer"), f"is {layer!r}", "auto or a number from 1"))
    return None


def _recipe(name: str, problems: list[Problem]) -> Recipe | None:
    try:
        return Recipe.from_yaml(name)
    except ConfigurationError as error:
        problems += error.problems
        return None


def _checked_layer(name: str, number: int | None, problems: list[Problem]) -> int | None:
    """The layer, chosen where it is None, after the target was checked with it."""
    try:
        shape = without_weights(name)
    except ModelError as error:
        problems += error.problems
        return None
    layer = automatic_layer(shape.layer_count) if number is None else number
    problems += target_problems(shape, layer)
    return layer
