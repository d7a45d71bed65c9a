"""The layer convention: a sidecar's K is the block whose output is read, hidden_states[K + 1]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nae_monitor.decode import load_reconstructor, open_ar, open_av, open_pair
from nae_monitor.decode.reconstructor import Reconstructor
from nae_monitor.errors import CheckpointError

CPU = torch.device("cpu")


def untrained_ar(directory: Path, sidecar: dict[str, Any]) -> Path:
    """The adapter form as training starts it: adapters that add nothing, an identity head."""
    directory.mkdir()
    tiny_nla.write_sidecar(directory, sidecar)
    tiny_nla.write_adapter(directory, tiny_nla.LAYER, seed=1, up_scale=0.0)
    save_file({"weight": torch.eye(tiny_nla.D)}, directory / "value_head.safetensors")
    return directory


def suffixless(tiny: Any, template: str = "{explanation}", **changes: Any) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    return tiny_nla.ar_sidecar(tokenizer) | {
        "base_model": "tiny",
        "tokens": {"critic_suffix_ids": []},
        "prompt_templates": {"ar": template},
        **changes,
    }


def loaded(tiny: Any, directory: Path) -> Reconstructor:
    checkpoint = open_ar(directory, tiny.resolve)
    return load_reconstructor(checkpoint, batch_size=1, dtype=torch.float32, device=CPU)


@pytest.fixture(scope="module")
def reader(tiny_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Reconstructor:
    """An untrained reconstructor of bare texts on the family whose tokenizer adds no BOS."""
    tiny = tiny_of("qwen2")
    place = tmp_path_factory.mktemp("reader") / "ar"
    return loaded(tiny, untrained_ar(place, suffixless(tiny)))


@pytest.fixture(scope="module")
def target(tiny_of: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_of("qwen2").base).eval()


def hidden_state(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    row: torch.Tensor = states[tiny_nla.K + 1][0, -1]
    return row


def test_an_untrained_reconstructor_gives_the_targets_hidden_state_of_the_same_text_exactly(
    tiny: Any, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.base).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    ar = loaded(tiny, untrained_ar(tmp_path / "ar", suffixless(tiny)))
    for text in ("dogs", "a harmful request about cats", "x y\nz "):
        expected = hidden_state(model, tokenizer(text)["input_ids"])
        assert torch.equal(ar.reconstruct([text])[0], expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(max_size=60))
def test_without_a_suffix_any_text_is_read_at_its_own_last_token(
    text: str, reader: Reconstructor, target: Any, tiny_of: Any
) -> None:
    ids = AutoTokenizer.from_pretrained(tiny_of("qwen2").base)(text)["input_ids"]
    (row,) = reader.reconstruct([text])
    if ids:
        assert torch.equal(row, hidden_state(target, ids))
    else:
        assert bool(torch.isnan(row).all())


def test_a_prompt_without_any_token_is_unknown_and_its_neighbours_are_not(
    reader: Reconstructor,
) -> None:
    rows = reader.reconstruct(["", "dogs", ""])
    assert torch.isnan(rows).all(dim=1).tolist() == [True, False, True]


def test_an_empty_text_is_read_at_the_end_of_the_templates_prefix(
    tiny_of: Any, target: Any, tmp_path: Path
) -> None:
    tiny = tiny_of("qwen2")
    ar = loaded(tiny, untrained_ar(tmp_path / "ar", suffixless(tiny, "<|user|>{explanation}")))
    ids = AutoTokenizer.from_pretrained(tiny.base)("<|user|>")["input_ids"]
    assert torch.equal(ar.reconstruct([""])[0], hidden_state(target, ids))


def test_an_empty_suffix_is_read_as_none(llama: Any, tmp_path: Path) -> None:
    opened = open_ar(untrained_ar(tmp_path / "ar", suffixless(llama)), llama.resolve)
    assert opened.contract.suffix_ids == ()


@pytest.mark.parametrize("tokens", [{}, {"critic_suffix_ids": None}])
def test_a_missing_suffix_is_refused(tokens: dict[str, Any], llama: Any, tmp_path: Path) -> None:
    directory = untrained_ar(tmp_path / "ar", suffixless(llama, tokens=tokens))
    with pytest.raises(CheckpointError) as caught:
        open_ar(directory, llama.resolve)
    assert [p.code for p in caught.value.problems] == ["missing:tokens.critic_suffix_ids"]


AR_KEYS = [
    {"ar": {"num_hidden_layers": tiny_nla.K}},
    {"ar": None, "critic": {"extraction_layer_index": tiny_nla.K}},
    {"ar": None, "critic": {"num_hidden_layers": tiny_nla.K}},
    {"ar": None, "extraction_layer_index": tiny_nla.K},
    {"ar": None, "extraction": {"layer_index": tiny_nla.K, "mse_scale": 1.0}},
]


@pytest.mark.parametrize("keys", AR_KEYS, ids=["ar", "critic", "critic-v1", "top", "extraction"])
def test_every_spelling_of_the_layer_index_means_the_hidden_state_behind_that_block(
    keys: dict[str, Any], llama: Any, tmp_path: Path
) -> None:
    directory = untrained_ar(tmp_path / "ar", suffixless(llama, **keys))
    contract = open_ar(directory, llama.resolve).contract
    assert (contract.layer_index, contract.layer) == (tiny_nla.K, tiny_nla.K + 1)
    ar = loaded(llama, directory)
    assert len(ar._trunk.layers) == contract.layer


def test_a_verbalizer_counts_layers_likewise_and_may_be_silent(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    said = open_av(official_copy[0], llama.resolve).contract
    assert (said.layer_index, said.layer) == (tiny_nla.K, tiny_nla.K + 1)
    sidecar = tiny_nla.read_sidecar(official_copy[0])
    del sidecar["extraction"]["layer_index"]
    tiny_nla.write_sidecar(official_copy[0], sidecar)
    silent = open_av(official_copy[0], llama.resolve).contract
    assert (silent.layer_index, silent.layer) == (None, None)


def test_a_wrong_depth_is_told_by_the_index_found_and_the_blocks_it_needs(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    sidecar = tiny_nla.read_sidecar(official_copy[1])
    del sidecar["ar"]
    sidecar["critic"] = {"extraction_layer_index": 1}
    tiny_nla.write_sidecar(official_copy[1], sidecar)
    with pytest.raises(CheckpointError) as caught:
        open_ar(official_copy[1], llama.resolve)
    said = str(caught.value)
    assert "critic.extraction_layer_index is 1: blocks 0..1 make 2" in said
    assert "config.json has 3" in said


def test_a_target_captured_elsewhere_is_told_by_index_and_hidden_states(llama: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_pair(*llama.official, llama.resolve, target_layer=tiny_nla.K)
    assert "the layer index is 2, which is hidden_states[3]" in str(caught.value)
    assert "captured at hidden_states[2]" in str(caught.value)


def test_the_last_block_of_a_base_may_be_the_captured_one(llama: Any, tmp_path: Path) -> None:
    last = {"num_hidden_layers": tiny_nla.LAYERS - 1}
    directory = untrained_ar(tmp_path / "ar", suffixless(llama, ar=last))
    assert open_ar(directory, llama.resolve).contract.layer == tiny_nla.LAYERS
