from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reporting.claims import Bound
from reporting.machine import Machine
from speed.steps import Half, Variant, Work, example_flop, variants
from speed.windows import interleaved, median, ratio_over_plain
from torch.utils.flop_counter import FlopCounterMode
from train_speed import CLAIM, bound_for, claims_of, main, measure, precisions
from typer import Exit

from nae_monitor.errors import InputDataError
from nae_monitor.train.lora import LoraOptions, trainable

BATCH = 4


@pytest.fixture(scope="module")
def work(target: Path) -> Work:
    options = LoraOptions(rank=4, alpha=8, batch_size=BATCH, warmup_steps=1)
    return Work(str(target), "cpu", 44, 2, options)


def loss_and_gradients(variant: Variant) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    variant.prepare()
    variant.model.zero_grad(set_to_none=True)
    loss = variant.step(np.arange(BATCH), 0)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad.clone() for n, p in trainable(variant.model).items() if p.grad is not None}
    return loss.detach(), found


@pytest.mark.parametrize("half", ["AV", "AR"])
def test_both_ways_of_a_step_give_the_same_loss_and_gradients(half: Half, work: Work) -> None:
    trainer, plain = variants(half, work, torch.float32)
    with torch.no_grad():
        for name, parameter in trainable(trainer.model).items():
            if "lora_B" in name:  # zero at the start, which would hide a difference
                parameter.normal_(std=0.05)
    (loss, gradients), (other_loss, other_gradients) = map(loss_and_gradients, (trainer, plain))
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == other_gradients.keys()
    assert len(gradients) >= 2 * 7 * 2
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], rtol=1e-3, atol=1e-5)


def test_each_way_runs_under_its_own_attention(work: Work) -> None:
    trainer, plain = variants("AV", work, torch.float32)
    model: Any = trainer.model
    trainer.prepare()
    assert model.config._attn_implementation == "eager"
    plain.prepare()
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("half", ["AV", "AR"])
def test_examples_have_exactly_the_tokens_that_are_asked_for(half: Half, work: Work) -> None:
    trainer, plain = variants(half, work, torch.float32)
    widths: list[int] = []
    model: Any = plain.model
    layer = (model if half == "AV" else model.body).get_base_model().model.layers[0]
    hook = layer.register_forward_hook(lambda _m, args, _out: widths.append(args[0].shape[1]))
    for variant in (trainer, plain):
        variant.prepare()
        variant.step(np.arange(BATCH), 0)
    hook.remove()
    # The trainer does not feed an explanation's last token: nothing follows it.
    assert widths == ([43, 44] if half == "AV" else [44, 44])


def test_examples_too_short_for_the_prompt_are_one_clear_error(work: Work) -> None:
    with pytest.raises(InputDataError, match="no room behind the prompt"):
        variants("AV", dataclasses.replace(work, tokens=5), torch.float32)


def test_the_counted_work_is_that_of_the_frozen_weights_and_more(work: Work) -> None:
    trainer, _ = variants("AR", work, torch.float32)
    counted = example_flop(trainer, work)
    model: Any = trainer.model
    frozen = sum(
        p.numel() for n, p in model.body.named_parameters() if n.endswith("base_layer.weight")
    )
    forward_only, with_backward = 2 * frozen * work.tokens, 4 * frozen * work.tokens
    assert forward_only < counted < 2 * with_backward
    assert not any(p.grad is not None for p in model.parameters())


def test_counting_is_per_example(work: Work) -> None:
    trainer, _ = variants("AV", work, torch.float32)
    trainer.prepare()
    with FlopCounterMode(display=False) as counter:
        trainer.step(np.arange(2 * BATCH) % work.examples, 0).backward()  # type: ignore[no-untyped-call]
    per_example = counter.get_total_flops() / (2 * BATCH)
    assert example_flop(trainer, work) == pytest.approx(per_example, rel=1e-6)


def fake_variant(half: Half, way: Any, order: list[str]) -> Variant:
    """A model of one parameter, which remembers when it was trained."""
    model = torch.nn.Linear(1, 1, bias=False)

    def step(rows: np.ndarray, number: int) -> torch.Tensor:
        order.append(f"{half} {way}")
        loss: torch.Tensor = model.weight.square().sum()
        return loss

    return Variant(half, way, torch.float32, model, lambda: None, step)


def test_variants_take_turns_and_none_is_always_first(work: Work) -> None:
    order: list[str] = []
    chosen = [fake_variant("AV", way, order) for way in ("trainer", "plain")]
    rates = interleaved(chosen, work, rounds=3, steps=2)
    fast, plain = ["AV trainer"], ["AV plain"]
    warm_up = fast + plain
    assert order == warm_up + 2 * fast + 2 * plain + 2 * plain + 2 * fast + 2 * fast + 2 * plain
    assert {name: len(found) for name, found in rates.items()} == {
        "AV, float32, trainer": 3,
        "AV, float32, plain": 3,
    }


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=20))
def test_the_interval_of_a_median_lies_within_the_windows_and_around_it(
    values: list[float],
) -> None:
    claim = median("x", np.array(values), "examples/s")
    assert min(values) - 1e-9 <= claim.low <= claim.value + 1e-9
    assert claim.value - 1e-9 <= claim.high <= max(values) + 1e-9


def test_the_gain_is_paired_by_round() -> None:
    plain = np.array([1.0, 10.0, 100.0])  # a machine that other work slows down by turns
    rates = {"AV, float32, trainer": 2 * plain, "AV, float32, plain": plain}
    claim = ratio_over_plain("AV, float32", rates)
    assert (claim.value, claim.low, claim.high) == (2, 2, 2)


@pytest.mark.parametrize(("rate", "holds"), [(7.5, False), (7.7, True)])
def test_the_claim_is_twice_the_trials_speed_on_the_trainers_own_variant(
    rate: float, holds: bool
) -> None:
    rates = {
        "AV, float32, trainer": np.array([rate] * 3),
        "AV, float32, plain": np.array([1.0] * 3),
    }
    claims = claims_of(rates, "AV, float32, trainer", CLAIM)
    assert [c.bound for c in claims] == [CLAIM, None, None]
    assert Bound(7.6) == CLAIM
    assert claims[0].holds is holds


def test_bfloat16_is_claimed_only_where_it_is_native(machine: Machine) -> None:
    assert precisions(machine) == (torch.float32,)
    native = dataclasses.replace(machine, native_bfloat16=True)
    assert precisions(native) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("limit", "code"), [(0.0, 0), (1e12, 1)])
def test_a_tiny_model_is_timed_in_every_way_and_judged(
    limit: float, code: int, work: Work, machine: Machine
) -> None:
    report, tables = measure(work, machine, rounds=1, steps=1, profile=True, bound=Bound(limit))
    assert report.exit_code == code
    assert len(report.claims) == 4 + 2
    assert [str(t.title) for t in tables[2:]] == [
        "one step of AV, float32, trainer",
        "one step of AR, float32, trainer",
    ]
    for name in ("share_of_matrix_peak", "tokens_per_s"):
        assert len(report.context[name]) == 4
        assert all(value > 0 for value in report.context[name].values())


def test_the_bound_is_for_the_trials_own_model_and_examples(work: Work) -> None:
    trial = dataclasses.replace(work, target="smollm2-135m-instruct")
    assert bound_for(trial, None) == CLAIM
    assert bound_for(dataclasses.replace(trial, tokens=20), None) is None
    assert bound_for(work, None) is None
    assert bound_for(work, 3.0) == Bound(3.0)


@pytest.mark.parametrize(("at_least", "code"), [(None, 0), (0.001, 0), (1e9, 1)])
def test_the_script_writes_its_json_and_exits_by_its_claim(
    at_least: float | None, code: int, target: Path, tmp_path: Path
) -> None:
    path = tmp_path / "speed.json"
    with pytest.raises(Exit) as ended:
        main(
            target=str(target), layer=2, batch_size=2, at_least=at_least, quick=True, json_file=path
        )
    content = json.loads(path.read_text())
    claimed = [claim for claim in content["claims"] if claim["bound"]]
    assert [c["name"].split(",")[0] for c in claimed] == (["AV"] if at_least else [])
    assert ended.value.exit_code == code
    assert content["context"]["windows"] == 3
