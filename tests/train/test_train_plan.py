from __future__ import annotations

from pathlib import Path

import pytest
import tiny_trainer
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from nae_monitor.errors import ConfigurationError
from nae_monitor.train.plan import automatic_layer, for_target, make_plan
from nae_monitor.train.recipe import Recipe

SMALL = {
    "vocab_size": 500,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
RECIPE = (
    "nla_id: own\ntarget: {target}\ncollect: {{layer: 3}}\nav: {{steps: 5}}\nar: {{steps: 5}}\n"
)


def write(directory: Path, config: PretrainedConfig) -> Path:
    """A target directory as users have it; its tokenizer knows the marker."""
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tiny_trainer.build_tokenizer().save_pretrained(directory)
    return directory


def recipe_file(directory: Path, target: object) -> str:
    path = directory / "recipe.yaml"
    path.write_text(RECIPE.format(target=target))
    return str(path)


@given(st.integers(2, 200))
def test_the_automatic_layer_is_two_thirds_of_the_depth_and_always_trainable(blocks: int) -> None:
    layer = automatic_layer(blocks)
    assert 1 <= layer < blocks
    assert abs(layer - 2 * blocks / 3) <= 1


def test_the_embedded_target_gets_the_layer_of_the_embedded_pair() -> None:
    assert automatic_layer(30) == 20


def test_a_target_alone_takes_the_devices_recipe_with_its_own_layer_and_name(
    tmp_path: Path,
) -> None:
    place = write(tmp_path / "My Model_v2", LlamaConfig(**SMALL))
    plan = make_plan(out=tmp_path / "run", target=str(place), device="cpu")
    default = Recipe.from_yaml("smollm2-135m-cpu")
    assert plan.device == "cpu"
    assert plan.recipe.nla_id == "my-model-v2-l4"
    assert plan.recipe.target == str(place)
    assert plan.recipe.collect.layer == 4
    assert (plan.recipe.av, plan.recipe.corpus) == (default.av, default.corpus)


def test_a_recipe_alone_is_run_as_it_is(tmp_path: Path) -> None:
    place = write(tmp_path / "model", LlamaConfig(**SMALL))
    name = recipe_file(tmp_path, place)
    plan = make_plan(out=tmp_path / "run", recipe=name, device="cpu")
    assert plan.recipe == Recipe.from_yaml(name)


@pytest.mark.parametrize(
    ("target", "layer", "expected"),
    [(None, "5", 5), (None, "auto", 4), ("other", None, 4), ("other", "2", 2), ("same", None, 3)],
)
def test_target_and_layer_override_the_recipe(
    target: str | None, layer: str | None, expected: int, tmp_path: Path
) -> None:
    same, other = (write(tmp_path / n, LlamaConfig(**SMALL)) for n in ("same", "other"))
    chosen = {None: None, "same": str(same), "other": str(other)}[target]
    name = recipe_file(tmp_path, same)
    plan = make_plan(out=tmp_path, recipe=name, target=chosen, layer=layer, device="cpu")
    assert plan.recipe.collect.layer == expected
    assert plan.recipe.nla_id == ("own" if expected == 3 else f"{target or 'same'}-l{expected}")


@pytest.mark.parametrize(
    ("target", "name"),
    [("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct-l9"), ("../!!", "target-l9")],
)
def test_the_pair_is_named_after_target_and_layer(target: str, name: str) -> None:
    assert for_target(Recipe.from_yaml("smollm2-135m-cpu"), target, 9).nla_id == name


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=False),
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        Qwen2Config(**SMALL),
        GemmaConfig(**SMALL, head_dim=8),
    ],
    ids=["llama-untied", "llama-tied", "qwen2", "gemma-scaled-embeddings"],
)
def test_targets_of_common_shapes_are_accepted(config: PretrainedConfig, tmp_path: Path) -> None:
    place = write(tmp_path / "model", config)
    plan = make_plan(out=tmp_path, target=str(place), device="cpu")
    assert plan.recipe.collect.layer == 4


def test_everything_that_is_wrong_comes_in_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        make_plan(
            out=tmp_path / "file" / "run",
            target=str(tmp_path / "no-model"),
            layer="two",
            recipe="no-such-recipe",
            device="tpu",
            stage="bake",
        )
    message = str(caught.value)
    assert len(caught.value.problems) == 6
    for part in (
        "file: is not a directory",
        "no-model",
        "--layer: is 'two'",
        "--device: is 'tpu'",
        "--stage: is 'bake'",
    ):
        assert part in message
    assert "no-such-recipe: cannot be read" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**SMALL, head_dim=8), "caps its logits"),
        (Gemma2Config(**SMALL, head_dim=8), "attend to a window only"),
        (GPT2Config(n_layer=6, n_embd=16, n_head=2, vocab_size=500), "an architecture"),
    ],
)
def test_an_unfit_architecture_is_told_from_its_configuration_alone(
    config: PretrainedConfig, message: str, tmp_path: Path
) -> None:
    place = write(tmp_path / "model", config)
    for file in place.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ConfigurationError, match=message):
        make_plan(out=tmp_path, target=str(place), device="cpu")


@pytest.mark.parametrize("layer", ["0", "6", "99"])
def test_a_layer_out_of_range_names_the_range(layer: str, tmp_path: Path) -> None:
    place = write(tmp_path / "model", LlamaConfig(**SMALL))
    with pytest.raises(ConfigurationError, match=f"layer is {layer} .choose 1 to 5"):
        make_plan(out=tmp_path, target=str(place), layer=layer, device="cpu")


def test_a_tokenizer_without_marker_template_or_end_is_told_at_once(tmp_path: Path) -> None:
    place = write(tmp_path / "model", LlamaConfig(**SMALL))
    tokenizer = tiny_trainer.build_tokenizer(chat=None, marker=False)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(place)
    for name in ("chat_template.jinja",):
        (place / name).unlink(missing_ok=True)
    with pytest.raises(ConfigurationError) as caught:
        make_plan(out=tmp_path, target=str(place), device="cpu")
    message = str(caught.value)
    assert "has no chat template" in message
    assert "encodes the marker" in message
    assert "has no end-of-sequence token" in message


def test_a_directory_that_holds_no_causal_model_is_a_configuration_error(tmp_path: Path) -> None:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        make_plan(out=tmp_path, target=str(place), device="cpu")


def test_cuda_without_a_card_is_one_of_the_problems(tmp_path: Path) -> None:
    place = write(tmp_path / "model", LlamaConfig(**SMALL))
    with pytest.raises(ConfigurationError, match="finds no CUDA device"):
        make_plan(out=tmp_path, target=str(place), device="cuda")
