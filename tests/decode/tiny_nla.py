"""Tiny random NLA pairs on disk: real tokenizers, real architectures, both checkpoint forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

D = 32
LAYERS = 5
K = 2  # the block whose output is read, as sidecars count
LAYER = K + 1  # the index into hidden_states, and the reconstructor's blocks
SCALE = 7.5
MARKER = "☃"
AV_TEMPLATE = "What does <c>{injection_char}</c> mean?"
AR_TEMPLATE = "Text: {explanation} </text> <summary>"
FAMILIES = ("llama", "qwen2", "gemma3")
CORPUS = ["the model speaks of dogs, cats and a harmful request", "Text: words </text> <summary>"]
CHAT = (
    "{{ bos_token or '' }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; with ``bos`` it adds one, as Llama's and Gemma's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([MARKER, "</explanation>", "<explanation>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT,
    )


def build_config(family: str, vocabulary: int, layers: int) -> Any:
    shared = {
        "vocab_size": vocabulary,
        "hidden_size": D,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * layers
        return transformers.Gemma3TextConfig(
            **shared, head_dim=8, sliding_window=8, layer_types=kinds[:layers]
        )
    cls = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[family]
    return cls(**shared, tie_word_embeddings=False)


def build_model(family: str, vocabulary: int, layers: int, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = build_config(family, vocabulary, layers)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write_base(directory: Path, family: str) -> Path:
    """An ordinary target model directory."""
    tokenizer = build_tokenizer(bos=family != "qwen2")
    model = build_model(family, len(tokenizer), LAYERS)
    with torch.no_grad():
        if model.config.tie_word_embeddings:  # else the last token wins for ever
            model.get_input_embeddings().weight *= 0.1
        else:  # so that some texts end at the closing tag
            model.lm_head.weight[tokenizer.convert_tokens_to_ids("</explanation>")] *= 1.6
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def av_sidecar(tokenizer: Any) -> dict[str, Any]:
    content = AV_TEMPLATE.replace("{injection_char}", MARKER)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
    )
    marker = tokenizer.convert_tokens_to_ids(MARKER)
    place = ids.index(marker)
    return {
        "kind": "nla_model",
        "role": "av",
        "nla_id": "tiny-l2-v1",
        "d_model": D,
        "extraction": {"layer_index": K, "injection_scale": SCALE},
        "tokens": {
            "injection_char": MARKER,
            "injection_token_id": marker,
            "injection_left_neighbor_id": ids[place - 1],
            "injection_right_neighbor_id": ids[place + 1],
        },
        "prompt_templates": {"av": AV_TEMPLATE},
    }


def ar_sidecar(tokenizer: Any) -> dict[str, Any]:
    suffix = tokenizer(" </text> <summary>", add_special_tokens=False)["input_ids"]
    return {
        "kind": "nla_model",
        "role": "ar",
        "nla_id": "tiny-l2-v1",
        "d_model": D,
        "extraction": {"mse_scale": D**0.5},
        "ar": {"num_hidden_layers": K},
        "tokens": {"critic_suffix_ids": suffix[-3:]},
        "prompt_templates": {"ar": AR_TEMPLATE},
    }


def write_sidecar(directory: Path, values: dict[str, Any]) -> None:
    text = yaml.safe_dump(values, allow_unicode=True)
    (directory / "nla_meta.yaml").write_text(text, encoding="utf-8")


def read_sidecar(directory: Path) -> dict[str, Any]:
    return yaml.safe_load((directory / "nla_meta.yaml").read_text(encoding="utf-8"))


def unit_rows(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, D, generator=generator) + 0.5
    return torch.nn.functional.normalize(rows, dim=1)


def write_ar_files(directory: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    head = torch.eye(D) + 0.1 * torch.randn(D, D, generator=generator)
    save_file({"weight": head}, directory / "value_head.safetensors")
    u = unit_rows(300, 6)
    mean = u.mean(0)
    variance = (u - mean).square().sum(1).mean().reshape(1)
    reference = {"mean": mean, "variance": variance, "bank": u[:256].half()}
    save_file(reference, directory / "fidelity.safetensors")


def write_official(root: Path, base: Path) -> tuple[Path, Path]:
    """The released form: full weights; the AR cut to its blocks, without norm and head."""
    av, ar = root / "official-av", root / "official-ar"
    shutil.copytree(base, av)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    write_sidecar(av, av_sidecar(tokenizer) | {"stage": "rl", "created_by": "elsewhere"})
    shutil.copytree(base, ar)
    config = json.loads((ar / "config.json").read_text())
    config["num_hidden_layers"] = LAYER
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:LAYER]
    (ar / "config.json").write_text(json.dumps(config))
    weights = load_file(ar / "model.safetensors")
    dropped = ("lm_head.", "model.norm.", *(f"model.layers.{i}." for i in range(LAYER, LAYERS)))
    kept = {k: v for k, v in weights.items() if not k.startswith(dropped)}
    save_file(kept, ar / "model.safetensors", metadata={"format": "pt"})
    write_sidecar(ar, ar_sidecar(tokenizer))
    write_ar_files(ar)
    return av, ar


def write_endless(av: Path, directory: Path) -> Path:
    """A verbalizer made of ``av`` whose texts never end by themselves."""
    shutil.copytree(av, directory)
    ends = transformers.AutoTokenizer.from_pretrained(av).convert_tokens_to_ids(
        ["</s>", "</explanation>"]
    )
    weights = load_file(av / "model.safetensors")
    head = weights["lm_head.weight"]
    others = [i for i in range(len(head)) if i not in ends]
    head[ends] = head[others].mean(0)  # the mean of some scores is never above all of them
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_adapter(
    directory: Path, blocks: int, *, seed: int, rank: int = 4, up_scale: float = 0.2
) -> None:
    """A LoRA adapter as peft saves it; with ``up_scale`` 0 as peft starts it, adding nothing."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"self_attn.q_proj": (D, 32), "self_attn.v_proj": (D, 16), "mlp.down_proj": (48, D)}
    tensors = {}
    for block in range(blocks):
        for name, (width_in, width_out) in shapes.items():
            stem = f"base_model.model.model.layers.{block}.{name}"
            down = 0.2 * torch.randn(rank, width_in, generator=generator)
            up = up_scale * torch.randn(width_out, rank, generator=generator)
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = down, up
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "base_model_name_or_path": "tiny",
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


def write_adapters(root: Path, base: Path) -> tuple[Path, Path]:
    """Our form: LoRA and a base model name instead of full weights."""
    av, ar = root / "adapter-av", root / "adapter-ar"
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    for directory, sidecar, blocks in (
        (av, av_sidecar(tokenizer), LAYERS),
        (ar, ar_sidecar(tokenizer), LAYER),
    ):
        directory.mkdir()
        write_sidecar(directory, sidecar | {"base_model": "tiny"})
        write_adapter(directory, blocks, seed=blocks)
    write_ar_files(ar)
    return av, ar
