from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_trainer
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from nae_monitor.decode import load_nla, open_pair
from nae_monitor.decode.prompts import parse_explanation
from nae_monitor.errors import ConfigurationError, InputDataError, ModelError
from nae_monitor.models import load_target, resolve_nla, resolve_target
from nae_monitor.settings import NlaSettings
from nae_monitor.train import ar, av, lora
from nae_monitor.train.best import final_state
from nae_monitor.train.conversations import CollectOptions
from nae_monitor.train.dataset import load_examples
from nae_monitor.train.evaluate import Outcome, evaluate, open_for_evaluation
from nae_monitor.train.held_out import held_out_examples, recipe_of, rows_of
from nae_monitor.train.lora import LoraOptions
from nae_monitor.train.metrics import read_metrics
from nae_monitor.train.reading import read_rows, read_texts
from nae_monitor.train.recipe import CorpusOptions, HalfOptions, Recipe
from nae_monitor.train.run import READ, STAGES, Run


def make_recipe(target: Path, **changes: Any) -> Recipe:
    half = HalfOptions(
        steps=12,
        lora=LoraOptions(rank=4, alpha=8, batch_size=8, warmup_steps=2, learning_rate=5e-3),
        evaluate_every=6,
        save_every=6,
    )
    recipe = Recipe(
        nla_id="tiny-l2",
        target=str(target),
        collect=CollectOptions(
            layer=tiny_trainer.K,
            prompt_tokens=24,
            reply_tokens=4,
            positions_per_document=2,
            batch_size=64,
        ),
        av=half,
        ar=dataclasses.replace(half, steps=36),  # half its texts are a beginner's
        corpus=CorpusOptions(validation_share=0.1, test_share=0.1),
        reference_vectors=256,
        read_rows=40,
    )
    return dataclasses.replace(recipe, **changes)


@dataclasses.dataclass
class Finished:
    run: Run
    rows: list[tuple[str, Mapping[str, Any]]]
    ticks: list[tuple[str, int, int]]

    @property
    def av(self) -> Path:
        return self.run.directory / "pair" / "tiny-l2-av"

    @property
    def ar(self) -> Path:
        return self.run.directory / "pair" / "tiny-l2-ar"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Finished:
    root = tmp_path_factory.mktemp("run")
    target = tiny_trainer.write_target(root / "target")
    rows: list[tuple[str, Mapping[str, Any]]] = []
    ticks: list[tuple[str, int, int]] = []
    run = Run(
        make_recipe(target),
        root / "run",
        progress=lambda stage, row: rows.append((stage, dict(row))),
        wheels=lambda: wheels,
        tick=lambda stage, done, total: ticks.append((stage, done, total)),
    )
    for stage in STAGES:
        run.stage(stage)
    return Finished(run, rows, ticks)


@pytest.fixture(scope="module")
def outcome(
    finished: Finished, wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAE_MONITOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = recipe_of(finished.av)
        examples = held_out_examples(recipe, "test", 20, wheels=lambda: wheels)
        pair = open_for_evaluation(finished.av, finished.ar, resolve_target)
        rows = rows_of(examples, content=True, limit=12, seed=0)
        return evaluate(pair, rows, tiny_trainer.WordEncoder())


def test_a_tiny_recipe_trains_exports_and_evaluates_end_to_end(
    finished: Finished, outcome: Outcome
) -> None:
    assert {stage for stage, _ in finished.rows} == {"collect", "av", "read", "ar"}
    found = {m.name: m for m in outcome.measures}
    assert len(found) == len(outcome.measures)
    assert math.isfinite(found["round-trip FVE"].value)
    for measure in outcome.measures:
        if not math.isnan(measure.low):
            assert measure.low <= measure.value + 1e-9
            assert measure.value <= measure.high + 1e-9
    gap = found["AV loss, another row's vector"].value - found["AV loss, real vector"].value
    assert found["gap: another's - real"].value == pytest.approx(gap, abs=1e-5)


def test_the_verbalizers_loss_falls_within_the_run(finished: Finished) -> None:
    losses = [row["loss"] for name, row in finished.rows if name == "av" and "loss" in row]
    assert losses[-1] < losses[0]


def test_every_training_stage_ends_with_its_speed_and_share_of_the_peak(
    finished: Finished,
) -> None:
    for stage in ("av", "ar"):
        last = [row for name, row in finished.rows if name == stage][-1]
        assert last["examples"] == 8 * {"av": 12, "ar": 36}[stage]
        assert last["tokens_per_s"] > last["examples_per_s"] > 0
        assert 0 < last["share_of_matmul_peak"] < 1
        ticks = [(done, total) for name, done, total in finished.ticks if name == stage]
        assert ticks == [(n + 1, len(ticks)) for n in range({"av": 12, "ar": 36}[stage])]
    assert (finished.run.directory / "run.svg").read_text().startswith("<svg")


def test_the_reconstructor_is_measured_on_the_verbalizers_texts_for_validation_rows(
    finished: Finished,
) -> None:
    rows = read_metrics(finished.run.directory / "ar" / "metrics.jsonl")
    assert all({"fve_gold", "fve_round_trip"} <= row.keys() for row in rows)
    best = max(rows, key=lambda row: row["fve_round_trip"])
    facts = lora.state_facts(finished.run.directory / "ar" / "best.safetensors")
    assert facts["measure"] == "fve_round_trip"
    assert facts["step"] == best["step"]


def test_the_verbalizers_own_texts_are_read_once_and_a_torn_line_again(
    finished: Finished,
) -> None:
    path = finished.run.directory / READ
    whole = path.read_bytes()
    rows = [json.loads(line)["row"] for line in whole.splitlines()]
    assert rows
    assert len(set(rows)) == len(rows) <= finished.run.recipe.read_rows
    path.write_bytes(whole[:-7])
    finished.run.stage("read")
    assert path.read_bytes() == whole


def test_what_is_read_is_what_generate_writes(finished: Finished, tmp_path: Path) -> None:
    data = finished.run.halves.data()
    tokenizer, train = data.verbalizer_tokenizer, data.train
    recipe = finished.run.recipe
    model = lora.add_adapters(load_target(recipe.target).model, recipe.av.lora, seed=recipe.seed)
    lora.load_state(final_state(finished.run.directory / "av"), model, None)
    model = model.merge_and_unload().eval()
    path = tmp_path / "read.jsonl"
    steps = read_rows(model, tokenizer, train, path, injection_scale=8.0, rows=5, seed=recipe.seed)
    assert list(steps) == [(5, 5)]
    prompt = av.av_prompt(tokenizer, 8.0)
    for row, text in read_texts(path, len(train)):
        ids = torch.tensor([prompt.token_ids])
        embedded = av.inject(model.get_input_embeddings()(ids), train.vectors[[row]], prompt)
        written = model.generate(
            inputs_embeds=embedded, max_new_tokens=64, do_sample=False, pad_token_id=0
        )
        whole = tokenizer.decode(written[0]).split(tokenizer.eos_token)[0]
        assert text == parse_explanation(whole)[0]


def test_texts_of_other_training_rows_are_refused(finished: Finished) -> None:
    with pytest.raises(InputDataError, match="delete it"):
        read_texts(finished.run.directory / READ, 1)


def test_the_recipe_survives_its_way_through_the_training_record(finished: Finished) -> None:
    assert recipe_of(finished.av) == finished.run.recipe == recipe_of(finished.ar)
    record = json.loads((finished.av / "training.json").read_text())
    assert [row["step"] for row in record["curve"]] == [6, 12]


def test_the_exported_pair_passes_every_check_of_the_contract(finished: Finished) -> None:
    av, ar_checkpoint = open_pair(
        finished.av,
        finished.ar,
        resolve_target,
        target_d_model=tiny_trainer.D,
        target_layer=tiny_trainer.K,
    )
    assert av.contract.nla_id == "tiny-l2"
    assert ar_checkpoint.contract.layer == tiny_trainer.K
    assert ar_checkpoint.reference is not None
    assert ar_checkpoint.reference.bank is not None


def test_the_exported_pair_matches_its_checksums_and_damage_is_found(
    finished: Finished, tmp_path: Path
) -> None:
    assert resolve_nla(str(finished.av)) == finished.av
    assert resolve_nla(str(finished.ar)) == finished.ar
    for file in finished.ar.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "value_head.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="value_head"):
        resolve_nla(str(tmp_path))


def test_the_exported_pair_decodes(finished: Finished) -> None:
    nla = load_nla(
        finished.av,
        finished.ar,
        settings=NlaSettings(av="", ar="", device="cpu", max_new_tokens=8),
        resolve_base=resolve_target,
    )
    decodings = nla.decode(torch.randn(3, tiny_trainer.D, generator=torch.manual_seed(0)))
    assert len(decodings) == 3
    assert all(d.cosine is not None and d.fve is not None and d.rank for d in decodings)


def test_the_exported_reconstructor_equals_the_trunk_that_was_trained(finished: Finished) -> None:
    recipe = finished.run.recipe
    target = load_target(recipe.target)
    trunk = ar.Trunk(lora.add_adapters(target.model, recipe.ar.lora, seed=3), tiny_trainer.K)
    lora.load_state(final_state(finished.run.directory / "ar"), trunk, None)
    texts = [
        'at " dog"; expects " ran"; small talk; prompt "the dog',
        "",
        "short",
        "a 'b' <c> \u00e9 \u4e2d",
    ]
    trained = ar.reconstruct(trunk.eval(), target.tokenizer, texts)
    pair = open_for_evaluation(finished.av, finished.ar, resolve_target)
    exported = pair.reconstructor.reconstruct(texts)
    assert torch.nn.functional.cosine_similarity(trained, exported).min() > 0.9999
    torch.testing.assert_close(exported, trained, rtol=2e-2, atol=2e-2)  # float16 adapters


def test_the_fidelity_mean_is_the_mean_of_unit_vectors_not_renormalised(
    finished: Finished,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.run.recipe.target)
    train = load_examples(finished.run.activations, tokenizer, "train")
    vectors = train.vectors[train.content]
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    stored = load_file(finished.ar / "fidelity.safetensors")
    torch.testing.assert_close(stored["mean"], unit.mean(0))
    assert float(stored["mean"].norm()) < 1
    # mean |u - m|^2 of unit vectors is 1 - |m|^2 exactly where m is their own plain mean
    torch.testing.assert_close(stored["variance"][0], 1 - unit.mean(0).square().sum())


def test_stages_that_are_done_do_nothing_when_run_again(finished: Finished) -> None:
    state = finished.run.directory / "av" / "state.safetensors"
    before = state.read_bytes(), len(finished.rows)
    finished.run.stage("av")
    assert (state.read_bytes(), len(finished.rows)) == before


def test_a_run_directory_refuses_shards_of_another_recipe(
    finished: Finished, wheels: dict[str, Path]
) -> None:
    other = make_recipe(Path(finished.run.recipe.target), seed=7)
    run = Run(other, finished.run.directory, wheels=lambda: wheels)
    with pytest.raises(ConfigurationError, match="another target, corpus, seed"):
        run.stage("collect")


def test_export_before_training_names_the_missing_state(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "activations").symlink_to(finished.run.activations)
    with pytest.raises(InputDataError, match=r"state\.safetensors is missing"):
        Run(finished.run.recipe, tmp_path).stage("export")


def test_a_state_of_another_recipe_is_refused(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "activations").symlink_to(finished.run.activations)
    (tmp_path / "av").symlink_to(finished.run.directory / "av")
    half = dataclasses.replace(finished.run.recipe.av, lora=LoraOptions(rank=2))
    with pytest.raises(InputDataError, match="state of another recipe"):
        Run(dataclasses.replace(finished.run.recipe, av=half), tmp_path).stage("av")


def test_a_split_without_documents_is_one_clear_error(
    finished: Finished, tmp_path: Path, wheels: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAE_MONITOR_CACHE", str(tmp_path))
    with pytest.raises(InputDataError, match="no documents of the split 'nowhere'"):
        held_out_examples(finished.run.recipe, "nowhere", 5, wheels=lambda: wheels)
