"""Merged pairs: read back here and by the released pairs' client as what they were."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch
from peft import PeftModel
from released_client import Actor, Critic
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from nae_monitor.decode import (
    Nla,
    load_nla,
    open_ar,
    open_av,
    open_pair,
    write_merged_ar,
    write_merged_av,
    write_merged_pair,
)
from nae_monitor.decode.older_readers import with_older_config_keys
from nae_monitor.errors import CheckpointError, ConfigurationError, ModelError
from nae_monitor.models import resolve_nla
from nae_monitor.settings import NlaSettings

FORMS = ("official", "adapter")
TEXTS = ["dogs", "", "a harmful request about cats, dogs and more cats", 'ends "here', "日本 Zoë"]
TOKENS = 10


def no_base(name: str) -> Path:
    raise ModelError(f"{name} was asked for")


def load(pair: tuple[Path, Path], resolve: Any) -> Nla:
    settings = NlaSettings(device="cpu", max_new_tokens=TOKENS)
    return load_nla(*pair, settings=settings, resolve_base=resolve)


def vectors(count: int) -> torch.Tensor:
    return 3 * torch.randn(count, tiny_nla.D, generator=torch.Generator().manual_seed(4))


def written(
    source: Any, place: Path, form: str = "adapter", dtype: torch.dtype = torch.float32
) -> tuple[Path, Path]:
    pair = open_pair(*getattr(source, form), source.resolve)
    return write_merged_pair(*pair, place, dtype=dtype)


def spoiled(directory: Path, **changes: Any) -> None:
    tiny_nla.write_sidecar(directory, tiny_nla.read_sidecar(directory) | changes)


@pytest.mark.parametrize("form", FORMS)
def test_a_float32_pair_gives_the_same_texts_and_vectors_to_the_last_bit(
    form: str, tiny: Any, tmp_path: Path
) -> None:
    place = written(tiny, tmp_path / "merged", form)
    source, merged = load(getattr(tiny, form), tiny.resolve), load(place, no_base)
    batch = vectors(4)
    expected = [dataclasses.replace(d, seconds=0.0) for d in source.decode(batch)]
    assert [dataclasses.replace(d, seconds=0.0) for d in merged.decode(batch)] == expected
    rebuilt = (n.reconstructor.reconstruct(TEXTS) for n in (source, merged))
    assert torch.equal(*rebuilt)
    assert (merged.nla_id, merged.layer) == (source.nla_id, tiny_nla.LAYER)


@pytest.mark.parametrize("form", FORMS)
def test_the_released_pairs_client_loads_both_halves_and_computes_the_same(
    form: str, tiny: Any, tmp_path: Path
) -> None:
    place = written(tiny, tmp_path / "merged", form)
    actor, critic = Actor(place[0]), Critic(place[1])
    source = load(getattr(tiny, form), tiny.resolve)
    rebuilt = torch.stack([critic.reconstruct(text) for text in TEXTS])
    assert torch.allclose(rebuilt, source.reconstructor.reconstruct(TEXTS), atol=1e-5)
    batch = vectors(3)
    texts = [actor.write(vector, TOKENS) for vector in batch]
    assert texts == [d.text for d in source.decode(batch)]


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_weights_are_the_float32_ones_rounded_once(
    form: str, tiny: Any, tmp_path: Path
) -> None:
    exact = written(tiny, tmp_path / "float32", form)
    rounded = written(tiny, tmp_path / "bfloat16", form, torch.bfloat16)
    for place, other in zip(rounded, exact, strict=True):
        stored, expected = (load_file(d / "model.safetensors") for d in (place, other))
        assert stored.keys() == expected.keys()
        assert all(torch.equal(stored[k], v.to(torch.bfloat16)) for k, v in expected.items())
        assert json.loads((place / "config.json").read_text())["dtype"] == "bfloat16"
    heads = [load_file(d / "value_head.safetensors")["weight"] for d in (rounded[1], exact[1])]
    assert torch.equal(*heads)
    assert len(load(rounded, no_base).decode(vectors(2))) == 2


def test_merged_weights_are_pefts(tiny: Any, tmp_path: Path) -> None:
    for place, adapter in zip(written(tiny, tmp_path / "merged"), tiny.adapter, strict=True):
        base = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32)
        expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
        stored = load_file(place / "model.safetensors")
        assert all(torch.allclose(v, expected[k], atol=1e-6) for k, v in stored.items())


@pytest.mark.parametrize("form", FORMS)
def test_a_reconstructor_holds_its_blocks_and_neither_norm_nor_head(
    form: str, tiny: Any, tmp_path: Path
) -> None:
    _, ar = written(tiny, tmp_path / "merged", form)
    keys = load_file(ar / "model.safetensors").keys()
    blocks = {key.split(".")[2] for key in keys if key.startswith("model.layers.")}
    assert blocks == {str(i) for i in range(tiny_nla.K + 1)}
    assert not [key for key in keys if key.startswith(("lm_head.", "model.norm."))]
    config = json.loads((ar / "config.json").read_text())
    assert config["num_hidden_layers"] == tiny_nla.K + 1
    sidecar = tiny_nla.read_sidecar(ar)
    assert sidecar["ar"]["num_hidden_layers"] == tiny_nla.K
    assert sidecar["critic"]["extraction_layer_index"] == tiny_nla.K


def test_both_sidecars_hold_the_keys_of_both_halves(llama: Any, tmp_path: Path) -> None:
    sidecars = [tiny_nla.read_sidecar(d) for d in written(llama, tmp_path / "merged")]
    source = [tiny_nla.read_sidecar(d) for d in llama.adapter]
    tokens = source[0]["tokens"] | source[1]["tokens"]
    templates = source[0]["prompt_templates"] | source[1]["prompt_templates"]
    assert [s["tokens"] for s in sidecars] == [tokens, tokens]
    assert [s["prompt_templates"] for s in sidecars] == [templates, templates]
    assert [s["extraction"]["layer_index"] for s in sidecars] == [tiny_nla.K, tiny_nla.K]
    assert [s["extraction"]["injection_scale"] for s in sidecars] == [tiny_nla.SCALE, None]
    assert [s["role"] for s in sidecars] == ["av", "ar"]
    assert [s["base_checkpoint"] for s in sidecars] == ["tiny", "tiny"]
    assert not any("base_model" in s for s in sidecars)


def test_what_a_source_says_of_its_making_is_passed_on(
    official_copy: tuple[Path, Path], llama: Any, tmp_path: Path
) -> None:
    spoiled(official_copy[1], stage="sft", trained_on=["a", "b"], created_by="someone")
    pair = open_pair(*official_copy, llama.resolve)
    _, ar = write_merged_pair(*pair, tmp_path / "merged", dtype=torch.float32)
    found = tiny_nla.read_sidecar(ar)
    said = (found["stage"], found["trained_on"], found["created_by"])
    assert said == ("sft", ["a", "b"], "someone")


def test_statistics_and_training_record_travel_byte_by_byte(
    adapter_copy: tuple[Path, Path], llama: Any, tmp_path: Path
) -> None:
    (adapter_copy[0] / "training.json").write_text('{"curve": []}\n')
    pair = open_pair(*adapter_copy, llama.resolve)
    av, ar = write_merged_pair(*pair, tmp_path / "merged", dtype=torch.bfloat16)
    for place, name, source in (
        (ar, "fidelity.safetensors", adapter_copy[1]),
        (av, "training.json", adapter_copy[0]),
    ):
        assert (place / name).read_bytes() == (source / name).read_bytes()
    assert not (ar / "training.json").exists()


def test_a_pair_without_statistics_stays_without(
    adapter_copy: tuple[Path, Path], llama: Any, tmp_path: Path
) -> None:
    (adapter_copy[1] / "fidelity.safetensors").unlink()
    pair = open_pair(*adapter_copy, llama.resolve)
    _, ar = write_merged_pair(*pair, tmp_path / "merged", dtype=torch.float32)
    assert open_ar(ar, no_base).reference is None


def test_every_file_is_in_the_checksums_and_damage_is_found(llama: Any, tmp_path: Path) -> None:
    for place in written(llama, tmp_path / "merged"):
        listed = {line.split("  ")[1] for line in (place / "SHA256SUMS").read_text().splitlines()}
        assert listed == {p.name for p in place.iterdir()} - {"SHA256SUMS"}
        assert resolve_nla(str(place)) == place
        assert {p.stat().st_mode & 0o777 for p in place.iterdir()} == {0o644}
        (place / "config.json").write_text("{}")
        with pytest.raises(ModelError, match=r"config\.json"):
            resolve_nla(str(place))


def test_the_same_pair_is_written_the_same_twice(llama: Any, tmp_path: Path) -> None:
    first, second = (written(llama, tmp_path / name) for name in ("first", "second"))
    for one, other in zip(first, second, strict=True):
        assert (one / "SHA256SUMS").read_bytes() == (other / "SHA256SUMS").read_bytes()


def test_no_file_names_a_place_of_this_machine(llama: Any, tmp_path: Path) -> None:
    for place in written(llama, tmp_path / "merged"):
        for path in place.iterdir():
            assert str(llama.base.parent).encode() not in path.read_bytes(), path.name


def test_each_half_can_be_written_alone(llama: Any, tmp_path: Path) -> None:
    av, ar = open_pair(*llama.adapter, llama.resolve)
    assert write_merged_av(av, tmp_path / "av", dtype=torch.float32) == tmp_path / "av"
    assert write_merged_ar(ar, tmp_path / "new" / "ar", dtype=torch.float32).is_dir()
    assert open_av(tmp_path / "av", no_base).prompt_ids == av.prompt_ids
    assert open_ar(tmp_path / "new" / "ar", no_base).contract.suffix_ids == ar.contract.suffix_ids
    Actor(tmp_path / "av")
    Critic(tmp_path / "new" / "ar")


def test_a_verbalizer_that_is_silent_of_its_layer_takes_its_partners(
    official_copy: tuple[Path, Path], llama: Any, tmp_path: Path
) -> None:
    spoiled(official_copy[0], extraction={"injection_scale": tiny_nla.SCALE})
    pair = open_pair(*official_copy, llama.resolve)
    av, _ = write_merged_pair(*pair, tmp_path / "merged", dtype=torch.float32)
    assert open_av(av, no_base).contract.layer_index == tiny_nla.K
    alone = write_merged_av(pair[0], tmp_path / "alone", dtype=torch.float32)
    assert open_av(alone, no_base).contract.layer_index is None


@pytest.fixture
def chatml(adapter_copy: tuple[Path, Path], llama: Any, tmp_path: Path) -> Any:
    """A base as SmolLM2's: a BOS that is named and never added, more special tokens, no suffix."""
    base = shutil.copytree(llama.base, tmp_path / "base")
    tokenizer = tiny_nla.build_tokenizer(bos=False)
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "additional_special_tokens": ["<explanation>"]}
    )
    tokenizer.save_pretrained(base)
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    (adapter_copy[0] / "chat_template.jinja").write_text(template)
    spoiled(
        adapter_copy[1],
        tokens={"critic_suffix_ids": []},
        prompt_templates={"ar": "<s>{{}} {explanation}"},
    )
    return dataclasses.replace(llama, base=base, adapter=adapter_copy)


def test_a_bos_that_is_never_added_loses_its_name_and_nothing_is_encoded_otherwise(
    chatml: Any, tmp_path: Path
) -> None:
    source = AutoTokenizer.from_pretrained(chatml.base)
    assert source.bos_token == "<s>"
    pair = open_pair(*chatml.adapter, chatml.resolve)
    for place in write_merged_pair(*pair, tmp_path / "merged", dtype=torch.float32):
        tokenizer = AutoTokenizer.from_pretrained(place)
        assert tokenizer.bos_token is None
        for text in [*TEXTS, "<s> and <explanation> and</s>", "☃ </explanation>"]:
            ids = tokenizer(text, add_special_tokens=True)["input_ids"]
            assert ids == source(text, add_special_tokens=True)["input_ids"]
            assert tokenizer.decode(ids, skip_special_tokens=True) == source.decode(
                ids, skip_special_tokens=True
            )
    assert pair[1].tokenizer.bos_token == "<s>"  # the caller's own stays as it was


def test_a_pair_without_suffix_and_with_braces_reads_the_same_in_the_client(
    chatml: Any, tmp_path: Path
) -> None:
    av, ar = written(chatml, tmp_path / "merged")
    critic = Critic(ar)
    source = load(chatml.adapter, chatml.resolve).reconstructor
    rebuilt = torch.stack([critic.reconstruct(text) for text in TEXTS])
    assert torch.allclose(rebuilt, source.reconstruct(TEXTS), atol=1e-5)
    assert Actor(av).ids == list(open_av(chatml.adapter[0], chatml.resolve).prompt_ids)


def test_tokenizer_files_are_in_the_words_of_older_readers(chatml: Any, tmp_path: Path) -> None:
    for place in written(chatml, tmp_path / "merged"):
        config = json.loads((place / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert config["bos_token"] is None
        assert config["additional_special_tokens"] == ["<explanation>"]
        assert "extra_special_tokens" not in config


def test_a_bos_that_the_chat_template_writes_keeps_its_name(chatml: Any, tmp_path: Path) -> None:
    (chatml.adapter[0] / "chat_template.jinja").write_text(tiny_nla.CHAT)
    before = open_av(chatml.adapter[0], chatml.resolve)
    av, ar = written(chatml, tmp_path / "merged")
    assert Actor(av).ids == list(before.prompt_ids)
    assert before.tokenizer.bos_token_id in before.prompt_ids
    assert AutoTokenizer.from_pretrained(av).bos_token == "<s>"
    assert AutoTokenizer.from_pretrained(ar).bos_token is None


ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 77.0},
    "scaled": {
        "rope_type": "llama3",
        "rope_theta": 77.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_embeddings_stand_under_their_older_names_and_are_read_as_they_were(
    kind: str, adapter_copy: tuple[Path, Path], llama: Any, tmp_path: Path
) -> None:
    base = shutil.copytree(llama.base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_parameters": ROPES[kind]}))
    source = dataclasses.replace(llama, base=base, adapter=adapter_copy)
    for place in written(source, tmp_path / "merged"):
        found = json.loads((place / "config.json").read_text())
        scaling = {k: v for k, v in ROPES[kind].items() if k != "rope_theta"}
        assert (found["rope_theta"], found["torch_dtype"]) == (77.0, "float32")
        assert found.get("rope_scaling") == (scaling if kind == "scaled" else None)
        again = AutoConfig.from_pretrained(place).rope_parameters
        assert again == AutoConfig.from_pretrained(base).rope_parameters


def test_gemmas_two_rotary_bases_stand_under_their_older_names(
    tiny_of: Any, tmp_path: Path
) -> None:
    gemma = tiny_of("gemma3")
    for place in written(gemma, tmp_path / "merged"):
        found = json.loads((place / "config.json").read_text())
        rope = AutoConfig.from_pretrained(gemma.base).rope_parameters
        assert found["rope_theta"] == rope["full_attention"]["rope_theta"]
        assert found["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"]
        assert AutoConfig.from_pretrained(place).rope_parameters == rope


def test_the_decoder_within_a_multimodal_configuration_gets_its_older_names() -> None:
    text = {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    found = with_older_config_keys({"model_type": "wrapper", "text_config": text})
    assert found["text_config"]["rope_theta"] == 5.0
    assert found["text_config"]["torch_dtype"] == "bfloat16"
    assert found["model_type"] == "wrapper"


def assert_nothing_left(directory: Path) -> None:
    assert [p.name for p in directory.iterdir() if p.name.endswith(".partial")] == []


@pytest.mark.parametrize("kind", ["file", "full", "link"])
def test_a_place_that_holds_something_is_refused_and_left_alone(
    kind: str, llama: Any, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    kept = place
    if kind == "file":
        place.write_text("mine")
    else:
        target = place if kind == "full" else tmp_path / "elsewhere"
        target.mkdir()
        kept = target / "mine.txt"
        kept.write_text("mine")
        if kind == "link":
            place.symlink_to(target)
    with pytest.raises(ConfigurationError, match="already there and not empty"):
        written(llama, place)
    assert kept.read_text() == "mine"
    assert_nothing_left(tmp_path)


def test_an_empty_directory_and_one_whose_parents_are_missing_are_taken(
    llama: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b"):
        assert written(llama, place) == (place / "av", place / "ar")
        assert_nothing_left(place.parent)


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond ``size_bytes``, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size_bytes", [200, 5_000, 60_000])
def test_a_disk_that_fills_up_is_named_and_leaves_nothing(
    size_bytes: int, llama: Any, tmp_path: Path
) -> None:
    pair = open_pair(*llama.adapter, llama.resolve)
    place = tmp_path / "merged"
    with disk_of(size_bytes), pytest.raises(ConfigurationError, match="cannot be written"):
        write_merged_pair(*pair, place, dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []
    write_merged_pair(*pair, place, dtype=torch.float32)


def test_an_interrupt_between_the_halves_leaves_nothing(llama: Any, tmp_path: Path) -> None:
    def step(name: str) -> None:
        if name == "reconstructor":
            raise KeyboardInterrupt

    pair = open_pair(*llama.adapter, llama.resolve)
    with pytest.raises(KeyboardInterrupt):
        write_merged_pair(*pair, tmp_path / "merged", dtype=torch.float32, step=step)
    assert list(tmp_path.iterdir()) == []


def test_what_was_put_there_meanwhile_is_not_overwritten(llama: Any, tmp_path: Path) -> None:
    place = tmp_path / "merged"

    def step(name: str) -> None:
        place.mkdir(exist_ok=True)
        (place / "mine.txt").write_text(name)

    pair = open_pair(*llama.adapter, llama.resolve)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_merged_pair(*pair, place, dtype=torch.float32, step=step)
    assert [p.name for p in tmp_path.rglob("*")] == ["merged", "mine.txt"]


def test_a_prompt_that_does_not_come_back_as_it_was_is_refused(llama: Any, tmp_path: Path) -> None:
    av = open_av(llama.adapter[0], llama.resolve)
    other = dataclasses.replace(av, prompt_ids=(*av.prompt_ids, 3))
    with pytest.raises(CheckpointError, match="not encoded alike"):
        write_merged_av(other, tmp_path / "av", dtype=torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_reconstructors_tokenizer_that_does_not_come_back_as_it_was_is_refused(
    llama: Any, tmp_path: Path
) -> None:
    class Fickle:
        """Encodes otherwise than the files that it saves."""

        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def __call__(self, text: str, **options: Any) -> Any:
            return self._tokenizer(text.upper(), **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tokenizer, name)

    ar = open_ar(llama.adapter[1], llama.resolve)
    other = dataclasses.replace(ar, tokenizer=Fickle(ar.tokenizer))
    with pytest.raises(CheckpointError, match="not encoded alike"):
        write_merged_ar(other, tmp_path / "ar", dtype=torch.float32)


def test_a_quantised_base_is_refused(llama: Any, tmp_path: Path) -> None:
    av = open_av(llama.adapter[0], llama.resolve)
    config = type(av.source.config)(**av.source.config.to_dict())
    config.quantization_config = {"quant_method": "awq"}
    quantised = dataclasses.replace(av, source=dataclasses.replace(av.source, config=config))
    with pytest.raises(CheckpointError, match="quantised"):
        write_merged_av(quantised, tmp_path / "av", dtype=torch.float32)


def test_writing_prints_nothing(
    llama: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    written(llama, tmp_path / "merged")
    assert capfd.readouterr() == ("", "")
