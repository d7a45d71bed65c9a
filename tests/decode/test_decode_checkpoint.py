from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer

from nae_monitor.decode import open_ar, open_av, open_pair
from nae_monitor.errors import CheckpointError, ConfigurationError, ModelError

Spoil = Callable[[Path, Path], None]


def edit(role: str, path: str, value: Any) -> Spoil:
    """Set (or, with ..., delete) a dotted key of a sidecar."""

    def spoil(av: Path, ar: Path) -> None:
        directory = av if role == "av" else ar
        sidecar = tiny_nla.read_sidecar(directory)
        *parents, last = path.split(".")
        place = sidecar
        for step in parents:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value
        tiny_nla.write_sidecar(directory, sidecar)

    return spoil


def edit_json(role: str, name: str, **values: Any) -> Spoil:
    def spoil(av: Path, ar: Path) -> None:
        path = (av if role == "av" else ar) / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def retokenize(role: str, change: Callable[[Any], None]) -> Spoil:
    def spoil(av: Path, ar: Path) -> None:
        directory = av if role == "av" else ar
        tokenizer = AutoTokenizer.from_pretrained(directory)
        change(tokenizer)
        tokenizer.save_pretrained(directory)

    return spoil


def template(text: str | None) -> Spoil:
    def spoil(av: Path, ar: Path) -> None:
        (av / "chat_template.jinja").unlink(missing_ok=True)
        if text is None:
            path = av / "tokenizer_config.json"
            values = json.loads(path.read_text())
            values.pop("chat_template", None)
            path.write_text(json.dumps(values))
        else:
            (av / "chat_template.jinja").write_text(text)

    return spoil


def pickled(av: Path, ar: Path) -> None:
    (av / "model.safetensors").unlink()
    (av / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def retensor(role: str, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(av: Path, ar: Path) -> None:
        path = (av if role == "av" else ar) / name
        tensors = load_file(path)
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"format": "pt"})

    return spoil


def truncate(role: str, name: str) -> Spoil:
    def spoil(av: Path, ar: Path) -> None:
        path = (av if role == "av" else ar) / name
        path.write_bytes(path.read_bytes()[:100])

    return spoil


def unlink(role: str, name: str) -> Spoil:
    return lambda av, ar: ((av if role == "av" else ar) / name).unlink()


def drop_bos(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()


OFFICIAL = [
    ("av", "nla_meta.yaml", "sidecar-missing", unlink("av", "nla_meta.yaml")),
    ("av", "kind", "kind", edit("av", "kind", "nla_dataset")),
    ("av", "role", "role", edit("av", "role", "ar")),
    ("ar", "role", "role", edit("ar", "role", "actor")),
    ("av", "d_model", "missing:d_model", edit("av", "d_model", ...)),
    ("av", "d_model", "value:d_model", edit("av", "d_model", "32")),
    ("av", "d_model", "d-model", edit("av", "d_model", 64)),
    ("ar", "d_model", "d-model", edit("ar", "d_model", 31)),
    (
        "av",
        "extraction.injection_scale",
        "missing:extraction.injection_scale",
        edit("av", "extraction.injection_scale", ...),
    ),
    (
        "av",
        "extraction.injection_scale",
        "value:extraction.injection_scale",
        edit("av", "extraction.injection_scale", -1.0),
    ),
    (
        "av",
        "tokens.injection_char",
        "missing:tokens.injection_char",
        edit("av", "tokens.injection_char", ...),
    ),
    (
        "av",
        "tokens.injection_token_id",
        "missing:tokens.injection_token_id",
        edit("av", "tokens.injection_token_id", ...),
    ),
    (
        "av",
        "tokens.injection_left_neighbor_id",
        "missing:tokens.injection_left_neighbor_id",
        edit("av", "tokens.injection_left_neighbor_id", ...),
    ),
    (
        "av",
        "tokens.injection_right_neighbor_id",
        "missing:tokens.injection_right_neighbor_id",
        edit("av", "tokens.injection_right_neighbor_id", ...),
    ),
    (
        "av",
        "prompt_templates.av",
        "missing:prompt_templates.av",
        edit("av", "prompt_templates", {}),
    ),
    (
        "av",
        "prompt_templates.av",
        "template:av",
        edit("av", "prompt_templates.av", "<c>{injection_char.__class__}</c>"),
    ),
    (
        "av",
        "tokens.injection_char",
        "marker-encoding",
        edit("av", "tokens.injection_char", "dogs☂"),
    ),
    (
        "av",
        "tokens.injection_token_id",
        "marker-count",
        edit("av", "prompt_templates.av", "☃ <c>{injection_char}</c>"),
    ),
    (
        "av",
        "tokens.injection_left_neighbor_id",
        "marker-left",
        edit("av", "tokens.injection_left_neighbor_id", 3),
    ),
    (
        "av",
        "tokens.injection_right_neighbor_id",
        "marker-right",
        edit("av", "tokens.injection_right_neighbor_id", 3),
    ),
    ("av", "prompt_templates", "chat-template", template(None)),
    ("av", "prompt_templates", "chat-template-broken", template("{{ raise_exception('no') }}")),
    ("av", "prompt_templates", "bos-twice", template("<s>" + tiny_nla.CHAT)),
    (
        "ar",
        "extraction.mse_scale",
        "missing:extraction.mse_scale",
        edit("ar", "extraction.mse_scale", None),
    ),
    ("ar", "ar.num_hidden_layers", "missing:ar.num_hidden_layers", edit("ar", "ar", ...)),
    ("ar", "ar.num_hidden_layers", "depth", edit("ar", "ar.num_hidden_layers", 1)),
    (
        "ar",
        "ar.num_hidden_layers",
        "layer-conflict",
        edit("ar", "critic", {"extraction_layer_index": 3}),
    ),
    (
        "ar",
        "tokens.critic_suffix_ids",
        "missing:tokens.critic_suffix_ids",
        edit("ar", "tokens.critic_suffix_ids", ...),
    ),
    (
        "ar",
        "tokens.critic_suffix_ids",
        "value:tokens.critic_suffix_ids",
        edit("ar", "tokens.critic_suffix_ids", ["x"]),
    ),
    ("ar", "tokens.critic_suffix_ids", "suffix", edit("ar", "tokens.critic_suffix_ids", [3, 4])),
    ("ar", "prompt_templates.ar", "template:ar", edit("ar", "prompt_templates.ar", "no field")),
    ("ar", "prompt_templates", "ar-bos", retokenize("ar", drop_bos)),
    ("ar", "value_head.safetensors", "head-missing", unlink("ar", "value_head.safetensors")),
    ("ar", "value_head.safetensors", "head-file", truncate("ar", "value_head.safetensors")),
    (
        "ar",
        "weight",
        "head-shape",
        retensor("ar", "value_head.safetensors", lambda t: t.update(weight=t["weight"][:-1])),
    ),
    (
        "ar",
        "weight",
        "head-key",
        retensor("ar", "value_head.safetensors", lambda t: t.update(other=t.pop("weight"))),
    ),
    (
        "ar",
        "weight",
        "head-finite",
        retensor("ar", "value_head.safetensors", lambda t: t["weight"].fill_(torch.nan)),
    ),
    (
        "ar",
        "mean",
        "fidelity-mean-renormalised",
        retensor(
            "ar",
            "fidelity.safetensors",
            lambda t: t.update(mean=torch.nn.functional.normalize(t["mean"], dim=0)),
        ),
    ),
    (
        "ar",
        "mean",
        "fidelity-mean-missing",
        retensor("ar", "fidelity.safetensors", lambda t: t.pop("mean")),
    ),
    (
        "ar",
        "mean",
        "fidelity-mean",
        retensor("ar", "fidelity.safetensors", lambda t: t.update(mean=t["mean"][:-1])),
    ),
    (
        "ar",
        "variance",
        "fidelity-variance-missing",
        retensor("ar", "fidelity.safetensors", lambda t: t.pop("variance")),
    ),
    (
        "ar",
        "variance",
        "fidelity-variance",
        retensor("ar", "fidelity.safetensors", lambda t: t["variance"].zero_()),
    ),
    (
        "ar",
        "bank",
        "fidelity-bank-shape",
        retensor("ar", "fidelity.safetensors", lambda t: t.update(bank=t["bank"][:255])),
    ),
    (
        "ar",
        "bank",
        "fidelity-bank-norm",
        retensor("ar", "fidelity.safetensors", lambda t: t["bank"].mul_(2)),
    ),
    ("ar", "fidelity.safetensors", "fidelity-file", truncate("ar", "fidelity.safetensors")),
    ("av", "pickled", "weights-pickled", pickled),
    ("av", "safetensors", "weights-missing", unlink("av", "model.safetensors")),
    ("av", "model.safetensors", "weights-unreadable", truncate("av", "model.safetensors")),
    ("av", "config.json", "config-unreadable", truncate("av", "config.json")),
    (
        "av",
        "auto_map",
        "remote-code",
        edit_json("av", "config.json", model_type="own", auto_map={"AutoConfig": "x.Y"}),
    ),
    (
        "av",
        "embedding_multiplier",
        "embedding-multiplier",
        edit_json("av", "config.json", model_type="granite", embedding_multiplier=12.0),
    ),
    ("av", "tokenizer", "tokenizer", truncate("av", "tokenizer.json")),
]


@pytest.mark.parametrize(
    ("role", "key", "code", "spoil"), OFFICIAL, ids=[f"{c[0]}-{c[2]}" for c in OFFICIAL]
)
def test_a_broken_rule_of_an_official_checkpoint_is_named_by_file_and_key(
    role: str, key: str, code: str, spoil: Spoil, official_copy: tuple[Path, Path], llama: Any
) -> None:
    spoil(*official_copy)
    with pytest.raises(CheckpointError) as caught:
        open_pair(*official_copy, llama.resolve)
    found = [p for p in caught.value.problems if p.code == code]
    assert found, caught.value
    assert str(official_copy[0 if role == "av" else 1]) in str(found[0])
    assert key in str(found[0])


def adapter_option(**values: Any) -> Spoil:
    return edit_json("av", "adapter_config.json", **values)


def rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for key in [k for k in tensors if old in k]:
        tensors[key.replace(old, new)] = tensors.pop(key)


ADAPTER = [
    ("base_model", "base-missing", edit("av", "base_model", ...)),
    ("base_model", "base-unresolved", edit("av", "base_model", "unheard-of")),
    ("adapter_config.json", "lora-config", unlink("av", "adapter_config.json")),
    ("peft_type", "lora-type", adapter_option(peft_type="IA3")),
    ("use_dora", "lora-option:use_dora", adapter_option(use_dora=True)),
    ("rank_pattern", "lora-option:rank_pattern", adapter_option(rank_pattern={"q": 2})),
    ("r ", "lora-r", adapter_option(r=0)),
    ("lora_alpha", "lora-alpha", adapter_option(lora_alpha="x")),
    ("lora_A", "lora-shape", adapter_option(r=8)),
    ("adapter_model", "lora-file", truncate("av", "adapter_model.safetensors")),
    (
        "other half",
        "lora-pair",
        retensor("av", "adapter_model.safetensors", lambda t: t.pop(sorted(t)[0])),
    ),
    (
        "layers.99",
        "lora-target",
        retensor("av", "adapter_model.safetensors", lambda t: rename(t, "layers.0.", "layers.99.")),
    ),
    (
        "lora_magnitude",
        "lora-key",
        retensor(
            "av", "adapter_model.safetensors", lambda t: rename(t, "lora_A", "lora_magnitude")
        ),
    ),
    ("LoRA", "lora-empty", retensor("av", "adapter_model.safetensors", lambda t: t.clear())),
    (
        "both",
        "form-ambiguous",
        lambda av, ar: save_file({"x": torch.ones(1)}, av / "model.safetensors"),
    ),
]


@pytest.mark.parametrize(("key", "code", "spoil"), ADAPTER, ids=[c[1] for c in ADAPTER])
def test_a_broken_rule_of_an_adapter_is_named_by_file_and_key(
    key: str, code: str, spoil: Spoil, adapter_copy: tuple[Path, Path], llama: Any
) -> None:
    def resolve(name: str) -> Path:
        if name != "tiny":
            raise ModelError("no such model")
        return llama.base

    spoil(*adapter_copy)
    with pytest.raises(CheckpointError) as caught:
        open_pair(*adapter_copy, resolve)
    found = [p for p in caught.value.problems if p.code == code]
    assert found, caught.value
    assert str(adapter_copy[0]) in str(found[0])
    assert key in str(found[0])


def test_every_code_is_distinct_per_role_and_the_lists_cover_them() -> None:
    codes = [(role, code) for role, _, code, _ in OFFICIAL] + [
        ("a", code) for _, code, _ in ADAPTER
    ]
    assert len(codes) == len(set(codes))


def test_both_forms_of_every_family_open(tiny: Any) -> None:
    for pair in (tiny.official, tiny.adapter):
        av, ar = open_pair(
            *pair, tiny.resolve, target_d_model=tiny_nla.D, target_layer=tiny_nla.LAYER
        )
        assert av.prompt_ids[av.marker_index] == av.contract.injection_token_id
        assert av.contract.injection_scale == tiny_nla.SCALE
        assert (av.contract.layer, ar.contract.layer) == (tiny_nla.LAYER, tiny_nla.LAYER)
        assert ar.reference is not None
        assert ar.reference.bank is not None


def test_older_key_names_mean_the_same(official_copy: tuple[Path, Path], llama: Any) -> None:
    new = open_pair(*official_copy, llama.resolve)
    av, ar = (tiny_nla.read_sidecar(d) for d in official_copy)
    av["role"], av["prompt_templates"] = "actor", {"actor": av["prompt_templates"]["av"]}
    av["extraction_layer_index"] = av["extraction"].pop("layer_index")
    ar["role"], ar["prompt_templates"] = "critic", {"critic": ar["prompt_templates"]["ar"]}
    ar["critic"] = {"extraction_layer_index": ar.pop("ar")["num_hidden_layers"]}
    ar["extraction"]["mse_scale"] = "sqrt_d_model"
    for directory, values in zip(official_copy, (av, ar), strict=True):
        tiny_nla.write_sidecar(directory, values)
    old = open_pair(*official_copy, llama.resolve)
    assert [c.contract for c in old] == [c.contract for c in new]


def test_problems_of_both_directories_are_reported_at_once(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    edit("av", "extraction.injection_scale", 0)(*official_copy)
    edit("av", "tokens.injection_char", ...)(*official_copy)
    edit("ar", "tokens.critic_suffix_ids", [3])(*official_copy)
    unlink("ar", "value_head.safetensors")(*official_copy)
    with pytest.raises(CheckpointError) as caught:
        open_pair(*official_copy, llama.resolve)
    assert {p.code for p in caught.value.problems} == {
        "value:extraction.injection_scale",
        "missing:tokens.injection_char",
        "suffix",
        "head-missing",
    }


@pytest.mark.parametrize(
    ("d_model", "layer", "code"), [(64, None, "target-d-model"), (None, tiny_nla.K, "target-layer")]
)
def test_a_pair_of_another_target_is_refused(
    d_model: int | None, layer: int | None, code: str, llama: Any
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_pair(*llama.official, llama.resolve, target_d_model=d_model, target_layer=layer)
    assert {p.code for p in caught.value.problems} == {code}


def test_halves_of_different_layers_are_refused(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    edit("av", "extraction.layer_index", 3)(*official_copy)
    with pytest.raises(CheckpointError) as caught:
        open_pair(*official_copy, llama.resolve)
    assert [p.code for p in caught.value.problems] == ["pair-layer"]


def test_halves_of_different_width_are_refused(
    official_copy: tuple[Path, Path], llama: Any, tmp_path: Path
) -> None:
    av = official_copy[0]
    tokenizer = AutoTokenizer.from_pretrained(av)
    config = tiny_nla.build_config("llama", len(tokenizer), 2)
    config.hidden_size = 64
    (av / "model.safetensors").unlink()
    tiny_nla.AutoModelForCausalLM.from_config(config).save_pretrained(av)
    edit("av", "d_model", 64)(*official_copy)
    with pytest.raises(CheckpointError) as caught:
        open_pair(*official_copy, llama.resolve)
    assert [p.code for p in caught.value.problems] == ["pair-d-model"]


def test_a_missing_directory_is_named(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no-such-av"):
        open_av(tmp_path / "no-such-av", llama.resolve)


def test_a_broken_yaml_file_is_a_checkpoint_error_with_its_line(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    (official_copy[1] / "nla_meta.yaml").write_text("kind: nla_model\nrole: [ar\n")
    with pytest.raises(CheckpointError, match=r"nla_meta\.yaml:\d+"):
        open_ar(official_copy[1], llama.resolve)


def test_an_adapter_base_that_is_too_shallow_is_refused(
    adapter_copy: tuple[Path, Path], llama: Any
) -> None:
    edit("ar", "ar.num_hidden_layers", tiny_nla.LAYERS)(*adapter_copy)
    with pytest.raises(CheckpointError) as caught:
        open_ar(adapter_copy[1], llama.resolve)
    assert [p.code for p in caught.value.problems] == ["depth"]


def test_a_marker_that_is_the_unknown_token_is_refused(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    edit("av", "tokens.injection_char", "<unk>")(*official_copy)
    edit("av", "tokens.injection_token_id", 0)(*official_copy)
    with pytest.raises(CheckpointError) as caught:
        open_av(official_copy[0], llama.resolve)
    assert "marker-unknown" in {p.code for p in caught.value.problems}


def test_an_adapters_chat_template_overrides_the_base_tokenizers(
    adapter_copy: tuple[Path, Path], llama: Any
) -> None:
    plain = open_av(adapter_copy[0], llama.resolve)
    (adapter_copy[0] / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}!"
    )
    own = open_av(adapter_copy[0], llama.resolve)
    assert len(own.prompt_ids) < len(plain.prompt_ids)


def test_an_adapters_tokenizer_need_not_add_a_bos_it_names(
    adapter_copy: tuple[Path, Path], llama: Any, tmp_path: Path
) -> None:
    base = shutil.copytree(llama.base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    drop_bos(tokenizer)
    tokenizer.save_pretrained(base)
    assert open_ar(adapter_copy[1], lambda _: base).contract.layer == tiny_nla.LAYER


def test_the_official_head_key_and_our_own_are_both_read(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    path = official_copy[1] / "value_head.safetensors"
    first = open_ar(official_copy[1], llama.resolve).head
    save_file({"value_head.weight": first}, path)
    assert torch.equal(open_ar(official_copy[1], llama.resolve).head, first)


def test_missing_statistics_leave_fidelity_unknown(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    unlink("ar", "fidelity.safetensors")(*official_copy)
    assert open_ar(official_copy[1], llama.resolve).reference is None


def test_checkpoint_errors_are_configuration_errors() -> None:
    assert issubclass(CheckpointError, ConfigurationError)
    assert CheckpointError("x").exit_code == 2
