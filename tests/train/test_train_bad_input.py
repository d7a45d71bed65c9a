"""Bad input of a whole run: one clear error, and what was good before is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_trainer
import torch
from test_train_run import make_recipe
from transformers import AutoModelForCausalLM, CohereConfig, GemmaConfig, GraniteConfig, LlamaConfig

from nae_monitor.errors import ConfigurationError, InputDataError, ModelError
from nae_monitor.models import Target
from nae_monitor.train import av, stages
from nae_monitor.train.fit import TrainingFailedError
from nae_monitor.train.halves import Data, Halves
from nae_monitor.train.lora import load_state
from nae_monitor.train.run import Run
from nae_monitor.train.target_checks import check_target

SMALL = {
    "vocab_size": 500,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def target_of(config: Any) -> Target:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    blocks, width = config.num_hidden_layers, config.hidden_size
    tokenizer = tiny_trainer.build_tokenizer()
    return Target("tiny", Path("tiny"), model, tokenizer, blocks, width, "")


@pytest.mark.parametrize(
    ("target", "layer", "message"),
    [
        ({"chat": None}, tiny_trainer.K, "has no chat template"),
        ({"marker": False}, tiny_trainer.K, "encodes the marker"),
        ({}, tiny_trainer.LAYERS, "has 4 blocks, collect.layer is 4 .choose 1 to 3"),
    ],
)
def test_an_unfit_target_is_refused_before_any_work(
    target: dict[str, Any], layer: int, message: str, tmp_path: Path, wheels: dict[str, Path]
) -> None:
    directory = tiny_trainer.write_target(tmp_path / "target", **target)
    recipe = make_recipe(directory)
    recipe = dataclasses.replace(recipe, collect=dataclasses.replace(recipe.collect, layer=layer))
    with pytest.raises(ModelError, match=message):
        Run(recipe, tmp_path / "run", wheels=lambda: wheels).stage("collect")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        LlamaConfig(**SMALL, tie_word_embeddings=False),
        GemmaConfig(**SMALL, head_dim=8),
    ],
    ids=["tied", "untied", "scaled-in-the-embedding-module"],
)
def test_embeddings_of_every_usual_kind_are_accepted(config: Any) -> None:
    check_target(target_of(config), 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GraniteConfig(**SMALL, embedding_multiplier=3.0), "scales its embeddings outside"),
        (GraniteConfig(**SMALL, logits_scaling=4.0), "scales, caps or biases its logits"),
        (CohereConfig(**SMALL, logit_scale=0.25), "scales, caps or biases its logits"),
    ],
)
def test_arithmetic_that_the_losses_would_leave_out_is_found_by_running_the_model(
    config: Any, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_target(target_of(config), 1)


def test_a_model_whose_final_norm_has_another_name_is_refused() -> None:
    target = target_of(LlamaConfig(**SMALL))
    inner = target.model.model
    inner.final_layernorm = inner.norm
    del inner.norm
    with pytest.raises(ModelError, match=r"architecture .* then model\.norm and lm_head"):
        check_target(target, 1)


def test_fewer_rows_than_a_batch_are_too_little_data(
    tmp_path: Path, wheels: dict[str, Path]
) -> None:
    target = tiny_trainer.write_target(tmp_path / "target")
    run = Run(make_recipe(target), tmp_path / "run", wheels=lambda: wheels)
    run.stage("collect")
    large = dataclasses.replace(run.recipe.ar.lora, batch_size=5000)
    recipe = dataclasses.replace(run.recipe, ar=dataclasses.replace(run.recipe.ar, lora=large))
    for stage in ("av", "ar"):
        with pytest.raises(InputDataError, match=r"less than one batch of 5000; collect more"):
            dataclasses.replace(run, recipe=recipe).stage(stage)


def test_shards_of_another_width_are_refused_by_name(
    tmp_path: Path, wheels: dict[str, Path]
) -> None:
    (tmp_path / "activations").mkdir()
    target = tiny_trainer.write_target(tmp_path / "target")
    run = Run(make_recipe(target), tmp_path / "run", wheels=lambda: wheels)
    run.stage("collect")
    shard = next(iter(run.activations.glob("shard-*")))
    table_width = tiny_trainer.D + 1
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(shard).drop_columns(["activation_vector"])
    flat = pa.array(torch.ones(table.num_rows * table_width).half().numpy())
    column = pa.FixedSizeListArray.from_arrays(flat, table_width)
    name = "shard-00000.parquet"
    pq.write_table(
        table.append_column("activation_vector", column), tmp_path / "activations" / name
    )
    with pytest.raises(InputDataError, match=f"{name} holds vectors of width 33, expected 32"):
        Run(run.recipe, tmp_path).stage("av")


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A verbalizer that was trained for half its steps, over made-up rows."""

    def data(self: Halves) -> Data:
        examples = tiny_trainer.make_examples(24, 0), tiny_trainer.make_examples(6, 1)
        return Data(tiny_trainer.build_tokenizer(), *examples, 4.0)

    monkeypatch.setattr(Halves, "data", data)
    recipe = make_recipe(tiny_trainer.write_target(tmp_path / "target"))
    half = dataclasses.replace(recipe.av, steps=2, save_every=2, evaluate_every=1)
    run = Run(dataclasses.replace(recipe, av=half), tmp_path / "run")
    run.stage("av")
    return dataclasses.replace(
        run, recipe=dataclasses.replace(recipe, av=dataclasses.replace(half, steps=4))
    )


def test_a_loss_that_turns_nan_keeps_the_last_good_state_of_a_run(
    stopped: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = av.weighted_loss
    calls: list[int] = []

    def spoiled(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*arguments) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(stages.av, "weighted_loss", spoiled)
    with pytest.raises(TrainingFailedError, match=r"not finite at step 3; .* is the last good"):
        stopped.stage("av")
    model = stopped.halves.verbalizer(stopped.directory / "av" / "state.safetensors")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    monkeypatch.setattr(stages.av, "weighted_loss", plain)
    stopped.stage("av")
    assert load_state(stopped.directory / "av" / "state.safetensors", model, None) == 4


@pytest.mark.parametrize("full", ["state.safetensors", "best.safetensors", "metrics.jsonl"])
def test_a_full_disk_is_one_clear_error_and_the_last_state_is_kept(
    full: str, stopped: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = stopped.directory / "av" / "state.safetensors"
    before = state.read_bytes()
    place = stopped.directory / "av" / full
    with monkeypatch.context() as patch:
        fill_disk(patch, place)
        with pytest.raises(ConfigurationError, match=f"{full}: cannot be written: No space left"):
            stopped.stage("av")
    assert state.read_bytes() == before
    assert not list(place.parent.glob("*.partial"))
    stopped.stage("av")
    assert (
        json.loads((stopped.directory / "av" / "metrics.jsonl").read_text().splitlines()[-1])[
            "step"
        ]
        == 4
    )


def fill_disk(patch: pytest.MonkeyPatch, full: Path) -> None:
    """Writes to one file fail as on a full disk; the kernel offers no smaller disk to tests."""
    opened, replaced = Path.open, Path.replace

    def refuse(path: Path, name: str) -> None:
        if path.name.removesuffix(".partial") == name:
            raise OSError(28, "No space left on device")

    def open_file(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if mode == "a":
            refuse(self, full.name)
        return opened(self, mode, *arguments, **named)

    def replace(self: Path, target: Path) -> Path:
        refuse(self, full.name)
        return replaced(self, target)

    patch.setattr(Path, "open", open_file)
    patch.setattr(Path, "replace", replace)
