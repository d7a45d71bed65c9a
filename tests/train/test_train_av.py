from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_trainer
import torch
from tiny_trainer import make_examples

from nae_monitor.errors import ModelError
from nae_monitor.train import av, stages
from nae_monitor.train.fit import FitOptions
from nae_monitor.train.lora import LoraOptions


@pytest.fixture(scope="module")
def av_tokenizer() -> Any:
    tokenizer = tiny_trainer.build_tokenizer()
    tokenizer.chat_template = av.AV_CHAT_TEMPLATE
    return tokenizer


def test_the_prompt_holds_the_marker_once_between_its_neighbours(av_tokenizer: Any) -> None:
    prompt = av.av_prompt(av_tokenizer, 5.0)
    marker = av_tokenizer.convert_tokens_to_ids(av.MARKER)
    assert [i for i, t in enumerate(prompt.token_ids) if t == marker] == [prompt.marker]
    assert prompt.neighbours == (
        prompt.token_ids[prompt.marker - 1],
        prompt.token_ids[prompt.marker + 1],
    )
    assert "<v>" + av.MARKER + "</v>" in av_tokenizer.decode(prompt.token_ids)


def test_a_marker_of_several_tokens_is_one_clear_error() -> None:
    tokenizer = tiny_trainer.build_tokenizer(marker=False)
    tokenizer.chat_template = av.AV_CHAT_TEMPLATE
    with pytest.raises(ModelError, match="encodes the marker █ to 3 tokens") as caught:
        av.av_prompt(tokenizer, 5.0)
    assert caught.value.exit_code == 2


def test_a_tokenizer_without_an_end_token_is_one_clear_error() -> None:
    tokenizer = tiny_trainer.build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        av.encode_targets(tokenizer, make_examples(2, 0).targets, span_weight=2.0)


def test_only_the_markers_row_is_overwritten_at_the_injection_scale(av_tokenizer: Any) -> None:
    prompt = av.av_prompt(av_tokenizer, 5.0)
    embeddings = torch.randn(3, 40, tiny_trainer.D)
    vectors = torch.randn(3, tiny_trainer.D) * torch.tensor([[0.01], [1.0], [900.0]])
    vectors[1] = 0  # the zeroed control
    before = embeddings.clone()
    result = av.inject(embeddings, vectors, prompt)
    others = [i for i in range(40) if i != prompt.marker]
    assert torch.equal(result[:, others], before[:, others])
    assert torch.equal(embeddings, before)
    rows = result[:, prompt.marker]
    torch.testing.assert_close(rows.norm(dim=-1), torch.tensor([5.0, 0.0, 5.0]))
    cosine = torch.nn.functional.cosine_similarity(rows[[0, 2]], vectors[[0, 2]])
    torch.testing.assert_close(cosine, torch.ones(2))


def test_token_losses_equal_hugging_faces_own_loss_row_by_row(
    model: Any, av_tokenizer: Any
) -> None:
    prompt = av.av_prompt(av_tokenizer, 5.0)
    data = make_examples(5, 1)
    encoded = av.encode_targets(av_tokenizer, data.targets, span_weight=2.0)
    assert len({len(ids) for ids in encoded.token_ids}) > 1
    losses, real = av.token_losses(model, prompt, data.vectors, encoded.token_ids)
    assert real.sum(1).tolist() == [len(ids) for ids in encoded.token_ids]
    assert (losses[~real] == 0).all()
    for i, ids in enumerate(encoded.token_ids):
        row = torch.tensor([[*prompt.token_ids, *ids]])
        embeddings = model.get_input_embeddings()(row).clone()
        vector = data.vectors[i]
        embeddings[0, prompt.marker] = vector / vector.norm() * 5.0
        labels = row.clone()
        labels[0, : len(prompt.token_ids)] = -100
        expected = model(inputs_embeds=embeddings, labels=labels).loss
        torch.testing.assert_close(losses[i][real[i]].mean(), expected, rtol=1e-4, atol=1e-4)


def test_the_weighted_loss_is_the_weighted_mean_over_all_tokens() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 0.0, 0.0]])
    real = torch.tensor([[True, True, True], [True, False, False]])
    weights = [(1.0, 2.0, 3.0), (0.5,)]
    total = sum(losses[i, j].item() * w for i, row in enumerate(weights) for j, w in enumerate(row))
    expected = total / sum(w for row in weights for w in row)
    assert av.weighted_loss(losses, real, weights).item() == pytest.approx(expected)


def test_validation_loss_is_the_mean_over_tokens_after_the_opening_tag(
    model: Any, av_tokenizer: Any
) -> None:
    prompt = av.av_prompt(av_tokenizer, 5.0)
    data = make_examples(7, 2)
    encoded = av.encode_targets(av_tokenizer, data.targets, span_weight=2.0)
    assert av_tokenizer.decode(encoded.token_ids[0][: encoded.open_tokens]) == av.OPEN
    total, count = 0.0, 0
    for i, ids in enumerate(encoded.token_ids):
        losses, _ = av.token_losses(model, prompt, data.vectors[i : i + 1], [ids])
        total += float(losses[0, encoded.open_tokens :].sum())
        count += len(ids) - encoded.open_tokens
    found = av.validation_loss(model, prompt, data.vectors, encoded, batch_size=3)
    assert found == pytest.approx(total / count, rel=1e-4)


def test_all_but_the_words_before_the_position_weigh_more(av_tokenizer: Any) -> None:
    targets = make_examples(6, 0).targets
    encoded = av.encode_targets(av_tokenizer, targets, span_weight=3.0)
    for target, ids, weights in zip(targets, encoded.token_ids, encoded.weights, strict=True):
        assert ids[-1] == av_tokenizer.eos_token_id
        assert len(ids) == len(weights)
        heavy = av_tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == 3.0])
        light = av_tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w == 1.0])
        assert f'at "{target.last_token}"; expects "{target.following}"; after ' in heavy
        assert heavy.endswith(target.theme)
        assert target.last in light
        assert "explanation" not in heavy


def train(directory: Path, tokenizer: Any, report: Any = lambda row: None) -> dict[str, Any]:
    options = LoraOptions(rank=2, alpha=4, batch_size=4, warmup_steps=1, learning_rate=1e-2)
    model = stages.train_av(
        tiny_trainer.build_model(len(tokenizer)),
        tokenizer,
        make_examples(20, 3),
        make_examples(6, 4),
        directory,
        options,
        FitOptions(steps=6, evaluate_every=4, save_every=3),
        injection_scale=5.0,
        reduced=False,
        report=report,
    )
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def test_a_killed_verbalizer_ends_where_an_uninterrupted_one_does(
    av_tokenizer: Any, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        raise KilledError

    whole = train(tmp_path / "whole", av_tokenizer)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", av_tokenizer, kill)
    resumed = train(tmp_path / "killed", av_tokenizer)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-6, atol=1e-6)
