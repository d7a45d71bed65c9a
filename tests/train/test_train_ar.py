from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_trainer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trainer import make_examples
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import cosine_similarity, normalize
from transformers import PreTrainedTokenizerFast

from nae_monitor.train import ar, lora, stages
from nae_monitor.train.batches import padded
from nae_monitor.train.collect import collect
from nae_monitor.train.conversations import CollectOptions
from nae_monitor.train.dataset import load_examples
from nae_monitor.train.fit import STATE, FitOptions
from nae_monitor.train.lora import LoraOptions

# The pre-tokenizer of GPT-4's family (Llama 3, Qwen): punctuation takes line breaks with it.
JOINING = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def joining_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(JOINING), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=tiny_trainer.SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_trainer.LINES * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", chat_template=tiny_trainer.CHAT
    )


TOKENIZERS = {"gpt2-like": tiny_trainer.build_tokenizer(), "joining": joining_tokenizer()}


def hidden_states(model: Any, rows: list[list[int]], layer: int) -> torch.Tensor:
    """hidden_states[layer] at the last token of every row [n, d], each by a pass of its own."""
    with torch.no_grad():
        passes = [model(torch.tensor([row]), output_hidden_states=True) for row in rows]
    return torch.stack([out.hidden_states[layer][0, -1] for out in passes])


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("blocks", range(1, tiny_trainer.LAYERS))
def test_the_trunk_is_the_unnormed_hidden_state_behind_its_blocks(
    blocks: int, adapters: bool
) -> None:
    """Oracle: hidden_states[blocks] of the whole model."""
    model = tiny_trainer.build_model(300, seed=2)
    rows = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16]]
    expected = hidden_states(model, rows, blocks)
    body = lora.add_adapters(model, LoraOptions(rank=2), seed=0) if adapters else model
    trunk = ar.Trunk(body, blocks).eval()
    with torch.no_grad():
        found = trunk(*padded(rows, pad=0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # the head is the identity
    inner = trunk.body.base_model.model.model if adapters else body.model
    assert len(inner.layers) == blocks


def test_adapters_start_where_the_seed_puts_them_and_leave_the_process_alone() -> None:
    def start(process_seed: int, seed: int) -> list[torch.Tensor]:
        model = tiny_trainer.build_model(300)
        torch.manual_seed(process_seed)
        wrapped = lora.add_adapters(model, LoraOptions(rank=2), seed=seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.manual_seed(process_seed)))
        return [p.detach() for p in lora.trainable(wrapped).values()]

    first, again, other = start(1, 5), start(2, 5), start(1, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_head_is_applied_to_the_last_real_token(model: Any) -> None:
    trunk = ar.Trunk(tiny_trainer.build_model(300, seed=2), tiny_trainer.K).eval()
    ids, mask = padded([[5, 6], [7, 8, 9]], pad=0)
    with torch.no_grad():
        plain = trunk(ids, mask)
        trunk.head.weight.mul_(2.0)
        torch.testing.assert_close(trunk(ids, mask), 2 * plain)
        alone = trunk(*padded([[5, 6]], pad=0))
    torch.testing.assert_close(alone[0], 2 * plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200)
@given(
    st.lists(st.one_of(st.text(max_size=6), st.sampled_from([*"<>/\"'\n :{}", "{explanation}"])))
)
def test_every_prompt_is_the_users_turn_and_the_explanation_and_nothing_behind(
    name: str, parts: list[str]
) -> None:
    tokenizer, text = TOKENIZERS[name], "".join(parts)
    (found,) = ar.encode_explanations(tokenizer, [text])
    assert found == tokenizer("<|im_start|>user\n" + text).input_ids
    assert tokenizer.decode(found).endswith(text)


def test_the_template_is_one_that_takes_an_explanation() -> None:
    """As the sidecar carries it: the user's turn, open, with its only hole at the end."""
    for tokenizer in TOKENIZERS.values():
        assert ar.ar_template(tokenizer) == "<|im_start|>user\n{explanation}"
    braces = tiny_trainer.build_tokenizer(
        chat="{% for m in messages %}{{ '{x}' + m['content'] }}{% endfor %}"
    )
    assert ar.ar_template(braces).format(explanation="a {b}") == "{x}a {b}"


def test_no_explanations_give_no_prompts() -> None:
    assert ar.encode_explanations(TOKENIZERS["gpt2-like"], []) == []


@given(st.text(max_size=40), st.integers(0, 99))
def test_a_shortened_text_is_a_beginning_or_a_part(text: str, seed: int) -> None:
    short = ar.shortened(text, np.random.default_rng(seed))
    assert text.startswith(short) or short in text.split("; ")


def test_the_loss_is_zero_only_for_the_right_direction() -> None:
    vectors = torch.randn(6, tiny_trainer.D, generator=torch.Generator().manual_seed(0))
    mean = stages.unit_mean(vectors)
    assert ar.ar_loss(3 * vectors, vectors, mean, contrast=0.0).item() == pytest.approx(0, abs=1e-6)
    assert ar.ar_loss(-vectors, vectors, mean, contrast=0.0).item() == pytest.approx(2, abs=1e-5)
    right = ar.ar_loss(vectors, vectors, mean, contrast=0.1)
    swapped = ar.ar_loss(vectors.roll(1, 0), vectors, mean, contrast=0.1)
    assert right < swapped


def test_fidelity_is_one_for_the_vectors_and_zero_for_the_mean() -> None:
    vectors = torch.randn(50, tiny_trainer.D) + 1
    mean = stages.unit_mean(vectors)
    perfect = stages.fidelity("gold", vectors, 4 * vectors, mean)
    assert perfect == {
        "fve_gold": pytest.approx(1, abs=1e-5),
        "cosine_gold": pytest.approx(1, abs=1e-5),
    }
    constant = stages.fidelity("gold", vectors, mean.expand_as(vectors), mean)
    assert constant["fve_gold"] < 0  # a direction is longer than the mean of directions


def test_reconstructions_do_not_depend_on_their_order(tokenizer: Any) -> None:
    trunk = ar.Trunk(tiny_trainer.build_model(len(tokenizer)), tiny_trainer.K).eval()
    texts = [t.text for t in make_examples(7, 0).targets] + [""]
    forward = ar.reconstruct(trunk, tokenizer, texts, batch_size=3)
    backward = ar.reconstruct(trunk, tokenizer, texts[::-1], batch_size=2)
    torch.testing.assert_close(forward, backward.flip(0), rtol=1e-4, atol=1e-4)


def contexts(tokenizer: Any, count: int) -> tuple[list[str], list[list[int]]]:
    """Texts, all different, and the prompts that hold exactly them."""
    texts = [t.text for t in make_examples(count, 0).targets]
    return texts, ar.encode_explanations(tokenizer, texts)


def fidelity(trunk: ar.Trunk, tokenizer: Any, texts: list[str], vectors: torch.Tensor) -> float:
    rebuilt = ar.reconstruct(trunk, tokenizer, texts)
    return stages.fidelity("gold", vectors, rebuilt, stages.unit_mean(vectors))["fve_gold"]


@pytest.mark.parametrize("layer", [1, tiny_trainer.K, tiny_trainer.LAYERS - 1])
def test_a_fitted_head_rebuilds_what_stood_behind_the_very_same_words(
    layer: int, tokenizer: Any
) -> None:
    """Oracle: Hugging Face's hidden_states[layer] behind each text; the trunk stays frozen."""
    texts, rows = contexts(tokenizer, 120)
    model = tiny_trainer.build_model(len(tokenizer), seed=1)
    vectors = hidden_states(model, rows, layer)
    trunk = ar.Trunk(model, layer).eval()
    nn.init.normal_(trunk.head.weight)  # wherever the head stood before
    assert fidelity(trunk, tokenizer, texts, vectors) < 0.5
    ar.fit_head(trunk, tokenizer, texts[:80], vectors[:80])
    assert fidelity(trunk, tokenizer, texts[80:], vectors[80:]) > 0.97
    cosine = cosine_similarity(ar.reconstruct(trunk, tokenizer, texts), vectors)
    assert cosine.min() > 0.97


def test_one_block_too_few_or_too_many_rebuilds_less(tokenizer: Any) -> None:
    """What tells the convention apart: the layer's own number of blocks is the best one."""
    texts, rows = contexts(tokenizer, 90)
    found = []
    for blocks in (1, 2, 3):
        model = tiny_trainer.build_model(len(tokenizer), seed=1)
        vectors = hidden_states(model, rows, 2)
        trunk = ar.Trunk(model, blocks).eval()  # the head is the identity
        found.append(fidelity(trunk, tokenizer, texts, vectors))
    assert found[1] == pytest.approx(1, abs=1e-4)
    assert max(found[0], found[2]) < 0.9


def test_the_fitted_head_is_the_closed_form_of_the_ridge_regression(tokenizer: Any) -> None:
    """Oracle: numpy's least squares on rows extended by the ridge, [states; sqrt(r) I]."""
    texts, rows = contexts(tokenizer, 40)
    model = tiny_trainer.build_model(len(tokenizer), seed=1)
    states = normalize(hidden_states(model, rows, tiny_trainer.K), dim=-1).double().numpy()
    vectors = torch.randn(40, tiny_trainer.D, generator=torch.Generator().manual_seed(3))
    ridge = ar.RIDGE * np.square(states).sum()
    above = np.vstack([states, np.sqrt(ridge) * np.eye(tiny_trainer.D)])
    wanted = normalize(vectors, dim=-1).double().numpy()
    beside = np.vstack([wanted, np.zeros((tiny_trainer.D, tiny_trainer.D))])
    expected = np.linalg.lstsq(above, beside, rcond=None)[0].T
    trunk = ar.Trunk(model, tiny_trainer.K).eval()
    ar.fit_head(trunk, tokenizer, texts, 7 * vectors)  # lengths do not matter
    np.testing.assert_allclose(trunk.head.weight.detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    assert trunk.head.weight.requires_grad  # training goes on from there


def test_a_fitted_head_beats_an_identity_head_on_real_collected_rows(
    tokenizer: Any, tmp_path: Path
) -> None:
    """Vectors of whole conversations, texts as targets are written: rows the head never saw."""
    model = tiny_trainer.build_model(len(tokenizer), seed=1)
    options = CollectOptions(
        layer=tiny_trainer.K, positions_per_document=8, min_position=0, batch_size=30
    )
    words = ["apples", "kites", "rivers", "fences", "snails", "poems"]
    documents = [
        (tiny_trainer.document(f"how do people {n} grow {words[n % 6]} {n * n}"), split)
        for n in range(60)
        for split in (("train", "test")[n % 3 == 0],)
    ]
    list(collect(model, tokenizer, documents, tmp_path, options, seed=0))
    train, test = (load_examples(tmp_path, tokenizer, split) for split in ("train", "test"))
    trunk = ar.Trunk(model, tiny_trainer.K).eval()
    gold, seen = ([t.text for t in part.targets] for part in (test, train))
    identity = fidelity(trunk, tokenizer, gold, test.vectors)
    ar.fit_head(trunk, tokenizer, seen, train.vectors)
    fitted = fidelity(trunk, tokenizer, gold, test.vectors)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    ar.fit_head(trunk, tokenizer, seen, train.vectors[order])
    shuffled = fidelity(trunk, tokenizer, gold, test.vectors)
    # A random model's states hang on every far word, so none of the three is good at it.
    assert fitted > max(identity, shuffled) + 0.1


def test_training_starts_at_the_fitted_head_and_a_resumed_run_does_not_go_back_there(
    tokenizer: Any, tmp_path: Path
) -> None:
    reports: list[dict[str, Any]] = []
    ended = train(tmp_path, tokenizer, reports.append)
    assert (tmp_path / STATE).exists()
    again = train(tmp_path, tokenizer)
    assert all(torch.equal(again[name], value) for name, value in ended.items())


def train(directory: Path, tokenizer: Any, report: Any = lambda row: None) -> dict[str, Any]:
    trunk = stages.train_ar(
        tiny_trainer.build_model(len(tokenizer)),
        tokenizer,
        make_examples(40, 3),
        make_examples(6, 4),
        directory,
        LoraOptions(rank=2, alpha=4, batch_size=16, warmup_steps=1, learning_rate=1e-2),
        FitOptions(steps=6, evaluate_every=4, save_every=3),
        blocks=tiny_trainer.K,
        reduced=False,
        report=report,
    )
    return {n: p.detach() for n, p in trunk.named_parameters() if p.requires_grad}


def test_a_killed_reconstructor_ends_where_an_uninterrupted_one_does(
    tokenizer: Any, tmp_path: Path
) -> None:
    """The texts shortened in a step are drawn from seed and step alone."""

    class KilledError(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        raise KilledError

    whole = train(tmp_path / "whole", tokenizer)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", tokenizer, kill)
    resumed = train(tmp_path / "killed", tokenizer)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-6, atol=1e-6)
