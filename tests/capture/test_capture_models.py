"""Models in other shapes: nested, wrapped, and the embedded default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_oracle import SHAPE, Recorder, check_rows, left_padded, make
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from nae_monitor.capture import TransformersTap, request_scope, self_test
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings

Build = Callable[..., TransformersTap]


@pytest.fixture(scope="module")
def conditional() -> Any:
    """Gemma 3 with a vision tower of as many layers as the language model."""
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=SHAPE["num_hidden_layers"],
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=6)
    torch.manual_seed(7)
    config = Gemma3Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        mm_tokens_per_image=4,
        image_token_index=95,
        boi_token_index=93,
        eoi_token_index=94,
    )
    return Gemma3ForConditionalGeneration(config).float().eval()


def test_the_language_model_inside_gemma3_is_watched(
    conditional: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(conditional), request_scope("r"):
        conditional.generate(
            **left_padded([[5, 6, 7], [8]]), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
    assert list(recorder.prompts) == ["r#0", "r#1"]
    assert check_rows(conditional, recorder) == 10


def test_a_model_under_peft_is_watched(tap: Build, recorder: Recorder) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(make("llama"), config).eval()
    with tap(model):
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert check_rows(model, recorder) == 6


def test_a_model_in_half_precision_keeps_its_type(tap: Build, recorder: Recorder) -> None:
    model = make("llama").to(torch.bfloat16)
    with tap(model), request_scope("r"):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    assert {row[3].dtype for row in recorder.rows_of["r"]} == {torch.bfloat16}
    assert self_test(model, None, layer=3) < 0.1


@pytest.mark.live
def test_the_embedded_target_is_watched_exactly() -> None:
    from nae_monitor.models import load_target

    target = load_target("smollm2-135m-instruct")
    layer = 20
    recorder, health = LiveRecorder(), Health()
    tap = TransformersTap(
        target.model,
        target.tokenizer,
        layer=layer,
        settings=CaptureSettings(min_position=10),
        listener=recorder,
        health=health,
        model_name=target.name,
    )
    target.tokenizer.padding_side = "left"
    chats = ["What is the capital of France?", "Name three colours of the rainbow, please."]
    inputs = target.tokenizer.apply_chat_template(
        [[{"role": "user", "content": chat}] for chat in chats],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with tap, request_scope("live"):
        output = target.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert list(recorder.prompts) == ["live#0", "live#1"]
    for row, request_id in zip(output, recorder.prompts, strict=True):
        sequence = recorder.sequence(request_id)
        assert target.tokenizer.decode(row, skip_special_tokens=True) == target.tokenizer.decode(
            sequence, skip_special_tokens=True
        )
        with torch.no_grad():
            states = target.model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
        for position, token, _, vector in recorder.rows_of[request_id]:
            assert token == sequence[position]
            expected = states[layer][0, position]
            assert (vector - expected).norm() < 1e-4 * expected.norm()
    assert "blind.no_rows" not in health.counters()


class LiveRecorder(Recorder):
    def rows(self, batch: Any) -> None:
        for i, index in enumerate(batch.request_index):
            row = (batch.positions[i], batch.token_ids[i], batch.phases[i], batch.vectors[i])
            self.rows_of[batch.requests[index].request_id].append(row)
