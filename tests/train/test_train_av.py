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
from nae_monitor.train.targets import Target


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
        av.encode_targets(tokenizer, make_examples(2, 0).targets)


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
    encoded = av.encode_targets(av_tokenizer, data.targets)
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
    encoded = av.encode_targets(av_tokenizer, data.targets)
    assert av_tokenizer.decode(encoded.token_ids[0][: encoded.open_tokens]) == av.OPEN
    total, count = 0.0, 0
    for i, ids in enumerate(encoded.token_ids):
        losses, _ = av.token_losses(model, prompt, data.vectors[i : i + 1], [ids])
        total += float(losses[0, encoded.open_tokens :].sum())
        count += len(ids) - encoded.open_tokens
    found = av.validation_loss(model, prompt, data.vectors, encoded, batch_size=3)
    assert found == pytest.approx(total / count, rel=1e-4)


def weighed(tokenizer: Any, target: Target) -> list[tuple[str, float]]:
    """(text, weight) of each run of tokens of one weight, in order."""
    encoded = av.encode_targets(tokenizer, [target])
    (ids,), (weights,) = encoded.token_ids, encoded.weights
    assert ids[-1] == tokenizer.eos_token_id
    assert len(ids) == len(weights)
    runs: list[tuple[list[int], float]] = []
    for token, weight in zip(ids, weights, strict=True):
        if not runs or runs[-1][1] != weight:
            runs.append(([], weight))
        runs[-1][0].append(token)
    return [(tokenizer.decode(run), weight) for run, weight in runs]


def test_the_token_the_kind_and_the_last_words_weigh_more() -> None:
    """Exact with a tokenizer whose tokens are characters: none lies across an edge."""
    tokenizer = tiny_trainer.build_character_tokenizer()
    target = Target("advice", "personal advice: asks, how", "prompt", "red kite", " flies", " kite")
    end = tokenizer.eos_token
    assert weighed(tokenizer, target) == [
        (av.OPEN, 1.0),
        ('at " kite"', av.TOKEN_WEIGHT),
        ('; expects " flies"', av.NEXT_WEIGHT),
        ("; personal advice", av.KIND_WEIGHT),
        (': asks, how; prompt "', 1.0),
        ("red ", av.WORDS_WEIGHT),
        ("kite", av.TOKEN_WEIGHT),
        (av.CLOSE + end, 1.0),
    ]


def test_a_theme_without_a_phrase_weighs_as_a_kind_throughout() -> None:
    tokenizer = tiny_trainer.build_character_tokenizer()
    target = Target("", "topic not clear yet", "prompt", "", " flies", " kite")
    assert weighed(tokenizer, target)[3:] == [
        ("; topic not clear yet", av.KIND_WEIGHT),
        ('; prompt "' + av.CLOSE + tokenizer.eos_token, 1.0),
    ]


def test_next_words_that_spell_the_theme_do_not_take_its_weight() -> None:
    tokenizer = tiny_trainer.build_character_tokenizer()
    target = Target("planning", "planning", "prompt", "first", "; planning", "a")
    assert weighed(tokenizer, target)[3] == ("; planning", av.KIND_WEIGHT)
    assert weighed(tokenizer, target)[2] == ('; expects "; planning"', av.NEXT_WEIGHT)


def test_spans_follow_each_other_to_the_end_of_the_text(av_tokenizer: Any) -> None:
    for target in make_examples(9, 0).targets:
        runs = weighed(av_tokenizer, target)
        assert "".join(text for text, _ in runs) == (
            f"{av.OPEN}{target.text}{av.CLOSE}{av_tokenizer.eos_token}"
        )
        assert {weight for _, weight in runs} == {1.0, av.TOKEN_WEIGHT, av.WORDS_WEIGHT}


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
