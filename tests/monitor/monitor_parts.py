"""A tiny real target with a real tap, judge, sinks and recording; only the decoder is a double."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nae_monitor.alert import build_sinks
from nae_monitor.detect import Judge, load_rules
from nae_monitor.health import Health
from nae_monitor.monitor import Monitor
from nae_monitor.parts import Parts
from nae_monitor.settings import (
    BudgetSettings,
    CaptureSettings,
    NlaSettings,
    PolicySettings,
    PrivacySettings,
    RecordSettings,
    ScreenSettings,
    Settings,
    TargetSettings,
)
from nae_monitor.sink_settings import AlertSettings, JsonlSettings, SinkSettings
from nae_monitor.testing import FakeDecoder

D_MODEL, LAYER, VOCABULARY = 32, 2, 300
PAD, EOS, BOS = 0, 1, 2
RULES = """
schema_version: 1
title: A coordinate that must not be largest
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e01
name: forbidden_coordinate
version: 1
status: stable
severity: high
description: Matches explanations by the number they end with.
author: tests
date: 2026-01-01
tags: [tests.pipeline]
scope: {phase: [prompt, completion], min_token_index: 0}
detection:
  ends: {field: explanation, regex: ['coordinate \\d*[02468]$']}
  said: {field: output, regex: ['(?s).+']}
  condition: ends and said
---
schema_version: 1
title: Any even coordinate
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e02
name: even_coordinate
version: 1
status: stable
severity: low
description: Matches half of all explanations, wherever they stand.
author: tests
date: 2026-01-01
tags: [tests.pipeline]
scope: {phase: [prompt, completion], min_token_index: 0}
detection:
  even: {field: explanation, regex: ['coordinate \\d*[02468]$']}
  condition: even
"""
NEVER = """
schema_version: 1
title: Nothing matches this
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e03
name: never
version: 1
status: stable
severity: low
description: Looks for a word that the double never says.
author: tests
date: 2026-01-01
tags: [tests.pipeline]
scope: {phase: [prompt, completion], min_token_index: 0}
detection:
  word: {field: explanation, keywords: {any: [xylophone]}}
  condition: word
"""


@cache
def tokenizer() -> Any:
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "</s>", "<s>"],
        show_progress=False,
    )
    inner.train_from_iterator(["some plain words to learn from, again and again"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        padding_side="left",
    )


def target(d_model: int = D_MODEL, seed: int = 3) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=d_model,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).float().eval()


def configuration(directory: Path, **changes: Any) -> Settings:
    """Everything decoded, everything recorded in the clear, alerts to a file."""
    sections: dict[str, Any] = {
        "target": TargetSettings("tiny"),
        "nla": NlaSettings(batch_size=4),
        "capture": CaptureSettings(min_position=2),
        "screen": ScreenSettings(
            every_n_tokens=3,
            random_share=0.2,
            budget=BudgetSettings(decodes_per_s=1e6, per_request=1000),
        ),
        "alert": AlertSettings(
            (SinkSettings("jsonl", JsonlSettings(str(directory / "alerts.jsonl"))),)
        ),
        "record": RecordSettings(str(directory / "recordings")),
        "privacy": PrivacySettings("full"),
        "policy": PolicySettings(),
    }
    return Settings(**{**sections, **changes})


def monitor(
    directory: Path,
    *,
    rules: str = RULES,
    decoder: Any = None,
    observer: Any = None,
    on_decision: Any = None,
    **changes: Any,
) -> Monitor:
    settings = configuration(directory, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "rules.yaml"
    path.write_text(rules, encoding="utf-8")
    health = Health()
    rule_set = load_rules((str(path),))
    parts = Parts(decoder or FakeDecoder(D_MODEL, LAYER), rule_set, Judge(rule_set, None, health))
    sinks = build_sinks(settings.alert, settings.privacy, health)
    return Monitor(settings, parts, sinks, health, observer, on_decision)


def prompt(text: str = "some plain words to learn from") -> dict[str, torch.Tensor]:
    return dict(tokenizer()(text, return_tensors="pt"))


def prompts(*texts: str) -> dict[str, torch.Tensor]:
    return dict(tokenizer()(list(texts), return_tensors="pt", padding=True))


def generate(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    chosen = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": PAD, **options}
    output: torch.Tensor = model.generate(**inputs, **chosen)
    return output
