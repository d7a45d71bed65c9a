from __future__ import annotations

from typing import Any

import pytest
import tiny_nla
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nae_monitor.decode import load_reconstructor, open_ar, open_av
from nae_monitor.decode.reconstructor import Reconstructor
from nae_monitor.decode.weights import load_causal_lm

CPU = torch.device("cpu")
TEXTS = ["dogs", "", "a harmful request about cats, dogs and more cats", "x y z", 'ends "here"']


def reconstructor(tiny: Any, form: str, batch_size: int = 1) -> Reconstructor:
    checkpoint = open_ar(getattr(tiny, form)[1], tiny.resolve)
    return load_reconstructor(checkpoint, batch_size=batch_size, dtype=torch.float32, device=CPU)


def by_hidden_states(model: Any, tiny: Any, head: torch.Tensor) -> torch.Tensor:
    """The full model's hidden_states[LAYER] at the prompt's last token, through the head."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    rows = []
    for text in TEXTS:
        prompt = tiny_nla.AR_TEMPLATE.replace("{explanation}", text)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        rows.append(states[tiny_nla.LAYER][0, -1] @ head.T)
    return torch.stack(rows)


def test_the_official_form_equals_hidden_states_through_the_head(tiny: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.base).eval()
    head = load_file(tiny.official[1] / "value_head.safetensors")["weight"]
    expected = by_hidden_states(model, tiny, head)
    got = reconstructor(tiny, "official").reconstruct(TEXTS)
    assert got.dtype == torch.float32
    assert torch.allclose(got, expected, atol=1e-4, rtol=1e-4)


def test_the_adapter_form_equals_pefts_own_merge(tiny: Any) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny.base)
    adapted = PeftModel.from_pretrained(base, tiny.adapter[1]).eval()
    head = load_file(tiny.adapter[1] / "value_head.safetensors")["weight"]
    expected = by_hidden_states(adapted, tiny, head)
    got = reconstructor(tiny, "adapter").reconstruct(TEXTS)
    assert torch.allclose(got, expected, atol=1e-3, rtol=1e-3)
    plain = reconstructor(tiny, "official").reconstruct(TEXTS)
    assert not torch.allclose(got, plain, atol=1e-1)


def test_merged_verbalizer_weights_equal_pefts(tiny: Any) -> None:
    checkpoint = open_av(tiny.adapter[0], tiny.resolve)
    ours = load_causal_lm(checkpoint.source, dtype=torch.float32, device=CPU).state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny.base)
    theirs = PeftModel.from_pretrained(base, tiny.adapter[0]).merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-6) for k in ours)


def test_padded_batches_equal_single_rows(tiny: Any) -> None:
    alone = reconstructor(tiny, "official", 1).reconstruct(TEXTS)
    for batch_size in (2, 5):
        together = reconstructor(tiny, "official", batch_size).reconstruct(TEXTS)
        assert torch.allclose(together, alone, atol=1e-4, rtol=1e-4)


def test_single_rows_do_not_depend_on_their_neighbours_in_any_bit(tiny: Any) -> None:
    ar = reconstructor(tiny, "official")
    together = ar.reconstruct(TEXTS)
    assert all(
        torch.equal(ar.reconstruct([t])[0], row) for t, row in zip(TEXTS, together, strict=True)
    )


def test_only_the_blocks_up_to_the_layer_are_kept_and_no_head(tiny: Any) -> None:
    for form in ("official", "adapter"):
        trunk = reconstructor(tiny, form)._trunk
        assert len(trunk.layers) == tiny_nla.LAYER
        assert not any("lm_head" in name for name, _ in trunk.named_parameters())
        assert isinstance(trunk.norm, torch.nn.Identity)


def test_a_text_longer_than_the_context_gives_an_unknown_row(llama: Any) -> None:
    got = reconstructor(llama, "official").reconstruct(["dogs", "zq " * 300])
    assert bool(torch.isfinite(got[0]).all())
    assert bool(torch.isnan(got[1]).all())


def test_no_texts_give_no_rows(llama: Any) -> None:
    assert reconstructor(llama, "official").reconstruct([]).shape == (0, tiny_nla.D)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompts_begin_with_one_bos_where_the_tokenizer_adds_it(family: str, tiny_of: Any) -> None:
    from nae_monitor.decode.tokens import ar_prompt

    checkpoint = open_ar(tiny_of(family).official[1], tiny_of(family).resolve)
    ids = ar_prompt(checkpoint.contract, checkpoint.tokenizer, "dogs")
    assert ids.count(checkpoint.tokenizer.bos_token_id) == 1
    assert ids[0] == checkpoint.tokenizer.bos_token_id
