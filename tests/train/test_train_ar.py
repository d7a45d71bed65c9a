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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from nae_monitor.errors import ModelError
from nae_monitor.train import ar, lora, stages
from nae_monitor.train.batches import padded
from nae_monitor.train.fit import FitOptions
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
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_trainer.LINES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"gpt2-like": tiny_trainer.build_tokenizer(), "joining": joining_tokenizer()}


@pytest.mark.parametrize("adapters", [False, True])
def test_the_trunk_is_the_unnormed_hidden_state_after_block_k(adapters: bool) -> None:
    """Oracle: hidden_states[K + 1] of the whole model, which blocks 0..K give."""
    model = tiny_trainer.build_model(300, seed=2)
    rows = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16]]
    with torch.no_grad():
        expected = torch.stack(
            [
                model(torch.tensor([row]), output_hidden_states=True).hidden_states[
                    tiny_trainer.K + 1
                ][0, -1]
                for row in rows
            ]
        )
    body = lora.add_adapters(model, LoraOptions(rank=2), seed=0) if adapters else model
    trunk = ar.Trunk(body, tiny_trainer.K + 1).eval()
    with torch.no_grad():
        found = trunk(*padded(rows, pad=0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # the head is the identity
    assert len(trunk.body.base_model.model.model.layers if adapters else body.model.layers) == 3


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
    trunk = ar.Trunk(tiny_trainer.build_model(300, seed=2), tiny_trainer.K + 1).eval()
    ids, mask = padded([[5, 6], [7, 8, 9]], pad=0)
    with torch.no_grad():
        plain = trunk(ids, mask)
        trunk.head.weight.mul_(2.0)
        torch.testing.assert_close(trunk(ids, mask), 2 * plain)
        alone = trunk(*padded([[5, 6]], pad=0))
    torch.testing.assert_close(alone[0], 2 * plain[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300)
@given(st.text(max_size=12))
def test_every_prompt_ends_with_the_suffix_whatever_the_explanation(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    suffix = ar.suffix_ids(tokenizer)
    (ids,) = ar.encode_explanations(tokenizer, [text])
    assert ids[-len(suffix) :] == suffix


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(st.sampled_from([*"<>/\"'\n :{}", "Vector", "</explanation>\nVector:"])))
def test_markup_in_an_explanation_does_not_break_the_suffix(name: str, parts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    suffix = ar.suffix_ids(tokenizer)
    (ids,) = ar.encode_explanations(tokenizer, ["".join(parts)])
    assert ids[-len(suffix) :] == suffix


def test_the_suffix_is_plain_where_it_survives_and_shared_where_it_joins() -> None:
    plain, joining = TOKENIZERS["gpt2-like"], TOKENIZERS["joining"]
    assert plain.decode(ar.suffix_ids(plain)) == ar.AR_SUFFIX
    assert joining.decode(ar.suffix_ids(joining)).endswith("Vector:")
    alone = joining(ar.AR_SUFFIX).input_ids
    (whole,) = ar.encode_explanations(joining, ["a"])
    assert whole[-len(alone) :] != alone  # which is why its own ids would not do


def test_a_tokenizer_that_ends_every_text_itself_is_refused() -> None:
    tokenizer = tiny_trainer.build_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)]
    )
    ending = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ModelError, match="does not end every reconstructor prompt"):
        ar.suffix_ids(ending)


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


def test_gold_fidelity_is_one_for_the_vectors_and_zero_for_the_mean() -> None:
    vectors = torch.randn(50, tiny_trainer.D) + 1
    mean = stages.unit_mean(vectors)
    perfect = stages.gold_fidelity(vectors, 4 * vectors, mean)
    assert perfect == {
        "fve_gold": pytest.approx(1, abs=1e-5),
        "cosine_gold": pytest.approx(1, abs=1e-5),
    }
    constant = stages.gold_fidelity(vectors, mean.expand_as(vectors), mean)
    assert constant["fve_gold"] < 0  # a direction is longer than the mean of directions


def test_reconstructions_do_not_depend_on_their_order(tokenizer: Any) -> None:
    trunk = ar.Trunk(tiny_trainer.build_model(len(tokenizer)), tiny_trainer.K + 1).eval()
    texts = [t.text for t in make_examples(7, 0).targets] + [""]
    forward = ar.reconstruct(trunk, tokenizer, texts, batch_size=3)
    backward = ar.reconstruct(trunk, tokenizer, texts[::-1], batch_size=2)
    torch.testing.assert_close(forward, backward.flip(0), rtol=1e-4, atol=1e-4)


def train(directory: Path, tokenizer: Any, report: Any = lambda row: None) -> dict[str, Any]:
    trunk = stages.train_ar(
        tiny_trainer.build_model(len(tokenizer)),
        tokenizer,
        make_examples(40, 3),
        make_examples(6, 4),
        directory,
        LoraOptions(rank=2, alpha=4, batch_size=16, warmup_steps=1, learning_rate=1e-2),
        FitOptions(steps=6, evaluate_every=4, save_every=3),
        blocks=tiny_trainer.K + 1,
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
