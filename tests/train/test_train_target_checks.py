from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_trainer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, MistralConfig

from nae_monitor.errors import ModelError
from nae_monitor.models import Target
from nae_monitor.train.target_checks import check_target

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def target_of(model: Any) -> Target:
    tokenizer = tiny_trainer.build_tokenizer()
    config = model.config
    return Target(
        "tiny", Path("tiny"), model, tokenizer, config.num_hidden_layers, config.hidden_size, ""
    )


def test_a_llama_in_range_is_accepted(model: Any) -> None:
    check_target(target_of(model), tiny_trainer.K)
    check_target(target_of(model), tiny_trainer.LAYERS - 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MistralConfig(**SMALL, sliding_window=8), "attend to a window only"),
        (Gemma3TextConfig(**SMALL, sliding_window=8), "attend to a window only"),
        (GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50), "architecture"),
    ],
    ids=["mistral", "gemma3", "gpt2"],
)
def test_an_architecture_that_would_be_trained_wrongly_is_refused(
    config: Any, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_target(target_of(AutoModelForCausalLM.from_config(config)), 1)


def test_every_problem_of_a_target_is_reported_at_once(model: Any) -> None:
    target = target_of(model)
    target.tokenizer.chat_template = None
    with pytest.raises(ModelError) as caught:
        check_target(dataclasses.replace(target, layer_count=2), 2)
    assert len(caught.value.problems) == 2
