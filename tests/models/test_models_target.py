from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nae_monitor.errors import ModelError
from nae_monitor.models import load_target, resolve_target
from nae_monitor.models.fingerprint import fingerprint


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny random Llama with a tokenizer, saved as an ordinary directory."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(8)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_directory_is_loaded_ready_to_watch(directory: Path) -> None:
    target = load_target(str(directory))
    assert (target.layer_count, target.d_model, target.directory) == (3, 16, directory)
    assert not target.model.training
    assert not any(p.requires_grad for p in target.model.parameters())
    assert target.model.dtype == torch.float32
    assert target.tokenizer("w3")["input_ids"] == [3]


def test_a_missing_directory_is_named() -> None:
    with pytest.raises(ModelError, match=r"\./nowhere.*not a directory"):
        resolve_target("./nowhere")


def test_an_unknown_plain_name_lists_the_aliases() -> None:
    with pytest.raises(ModelError, match="smollm2-135m-instruct"):
        resolve_target("no-such-alias")


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve_target(str(tmp_path))


def test_an_unreachable_hub_is_a_clear_error(tmp_path: Path) -> None:
    script = "from nae_monitor.models import resolve_target; resolve_target('some/model')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1].startswith(
        "nae_monitor.errors.ModelError: some/model: could not be fetched from the model hub"
    )


def test_truncated_weights_are_refused(directory: Path) -> None:
    weights = directory / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 10)
    with pytest.raises(ModelError, match=r"model\.safetensors.*truncated"):
        load_target(str(directory))


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0not json", b"\xff" * 64])
def test_broken_weights_are_refused(directory: Path, content: bytes) -> None:
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_target(str(directory))


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no-such-model"}'])
def test_a_broken_config_is_refused(directory: Path, content: str) -> None:
    (directory / "config.json").write_text(content)
    with pytest.raises(ModelError, match="tiny"):
        load_target(str(directory))


def test_missing_weights_are_never_made_up(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["num_hidden_layers"] = 4
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lacks weights"):
        load_target(str(directory))


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors"):
        load_target(str(directory))


def test_code_beside_a_model_is_never_run(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "homemade"
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"open({str(directory / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        load_target(str(directory))
    assert not (directory / "ran").exists()


def test_the_fingerprint_ignores_where_and_by_whom_it_was_written(directory: Path) -> None:
    before = fingerprint(directory)
    config = json.loads((directory / "config.json").read_text())
    config["transformers_version"] = "0.0"
    (directory / "config.json").write_text(json.dumps(config, indent=8))
    assert fingerprint(directory) == before
    config["rms_norm_eps"] = 0.5
    (directory / "config.json").write_text(json.dumps(config))
    assert fingerprint(directory) != before


@pytest.mark.live
def test_the_embedded_target_answers() -> None:
    target = load_target("smollm2-135m-instruct")
    assert (target.layer_count, target.d_model) == (30, 576)
    assert len(target.fingerprint) == 64
    inputs = target.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = target.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    text = target.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert "Paris" in text
