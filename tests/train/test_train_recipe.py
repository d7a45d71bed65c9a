from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import pytest

from nae_monitor.errors import ConfigurationError
from nae_monitor.train.plan import DEFAULT_RECIPES
from nae_monitor.train.recipe import Recipe

GOOD = """\
nla_id: tiny
target: ./model
collect: {layer: 2}
av: {steps: 5, lora: {rank: 4}}
ar:
  steps: 5
"""


def test_every_shipped_recipe_loads_by_its_name() -> None:
    folder = resources.files("nae_monitor.train") / "recipes"
    names = [p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")]
    assert {"smollm2-135m-cpu", *DEFAULT_RECIPES.values()} <= set(names)
    for name in names:
        assert Recipe.from_yaml(name).nla_id


def test_a_file_gives_what_it_says_and_defaults_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    recipe = Recipe.from_yaml(path)
    assert recipe.collect.layer == 2
    assert recipe.av.lora.rank == 4
    assert recipe.av.lora.alpha == recipe.ar.lora.alpha == 32
    assert dataclasses.asdict(recipe)["seed"] == 0


def test_expert_iteration_and_early_stop_are_off_unless_a_recipe_asks(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    recipe = Recipe.from_yaml(path)
    assert (recipe.expert.rounds, recipe.av.patience, recipe.ar.patience) == (0, None, None)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("rank: 4", "rnak: 4", "4:23", "unknown key 'rnak' in av.lora (did you mean 'rank'?)"),
        ("target: ./model\n", "", "1:1", "lacks the key 'target'"),
        ("  steps: 5", "  steps: 0", "5:1", "ar: steps is 0, must be at least 1"),
        ("layer: 2", "layer: two", "3:11", "layer is 'two' (expected int)"),
        ("layer: 2", "layer: 0", "3:1", "layer is 0, must be at least 1"),
        ("layer: 2", "layer: 2, max_batches: 0", "3:1", "max_batches is 0"),
        ("layer: 2", "layer: 2, min_position: -1", "3:1", "min_position is -1"),
        ("rank: 4", "learning_rate: 0", "4:16", "learning_rate is 0.0, must be above 0"),
        ("rank: 4", "warmup_steps: -1", "4:16", "must not be negative"),
        ("nla_id: tiny", "nla_id: tiny\nscale_quantile: 2", "1:1", "scale_quantile is 2.0"),
        ("nla_id: tiny", "nla_id: tiny\nreference_vectors: 8", "1:1", "at least 256"),
        (
            "nla_id: tiny",
            "nla_id: tiny\ncorpus: {test_share: 0.9, validation_share: 0.1}",
            "2:1",
            "leave nothing to train on",
        ),
        ("rank: 4}", "rank: 4}, patience: 0", "4:1", "patience is 0"),
        ("rank: 4}", "rank: 4}, measure: loss", "4:33", "one of: validation_loss, gap"),
        ("rank: 4}", "rank: 4}, measure: fve_gold", "1:1", "one of: validation_loss, gap"),
        ("nla_id: tiny", "nla_id: tiny\nexpert: {rounds: -1}", "2:1", "rounds is -1"),
        ("nla_id: tiny", "nla_id: tiny\nexpert: {samples: 0}", "2:1", "samples is 0"),
        ("nla_id: tiny", "nla_id: tiny\nexpert: {temperature: 0}", "2:1", "must be above 0"),
        (
            "nla_id: tiny",
            "nla_id: tiny\ncorpus: {validation_share: 0.0}",
            "2:1",
            "must be above 0",
        ),
    ],
)
def test_a_bad_recipe_is_one_error_with_its_place(
    old: str, new: str, place: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigurationError) as caught:
        Recipe.from_yaml(path)
    assert f"{path}:{place}: " in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_recipe_that_does_not_exist_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="no-such-recipe: cannot be read"):
        Recipe.from_yaml("no-such-recipe")
