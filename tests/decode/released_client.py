"""What the public client of the released pairs asks of a directory, written down anew for tests.

Its documented start-up checks and its arithmetic, with transformers, safetensors and PyYAML alone
and none of this package: the sidecar's keys, the marker and its neighbours, one embedding table,
the BOS probe, a causal LM without final norm and head, a bias-free square head.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TABLES = re.compile(r"(embed_tokens|wte|word_embeddings)\.weight$")


def sidecar_of(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((directory / "nla_meta.yaml").read_text("ascii"))
    assert values["kind"] == "nla_model"
    return values


class Actor:
    """The verbalizer's half: prompt embeddings with the vector in the marker's place.

    The client keeps the embedding table in bfloat16, whatever the file holds: what is computed here
    is what it sends to its server for a pair that was exported in bfloat16.
    """

    def __init__(self, directory: Path) -> None:
        meta = sidecar_of(directory)
        tokens = meta["tokens"]
        self.marker = tokens["injection_token_id"]
        self.scale = float(meta["extraction"]["injection_scale"])
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        char = tokens["injection_char"]
        assert self.tokenizer.encode(char, add_special_tokens=False) == [self.marker]
        assert self.tokenizer.unk_token_id != self.marker
        message = {"role": "user", "content": _template(meta, "av", "actor", injection_char=char)}
        self.ids: list[int] = self.tokenizer.apply_chat_template(
            [message], tokenize=True, return_dict=False, add_generation_prompt=True
        )
        assert self.ids.count(self.marker) == 1
        self.place = self.ids.index(self.marker)
        assert 0 < self.place < len(self.ids) - 1
        assert self.ids[self.place - 1] == tokens["injection_left_neighbor_id"]
        assert self.ids[self.place + 1] == tokens["injection_right_neighbor_id"]
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        weights = load_file(directory / "model.safetensors")
        (table,) = (value for key, value in weights.items() if TABLES.search(key))
        assert table.shape[1] == meta["d_model"]
        gemma = self.model.config.model_type.startswith("gemma")
        self.rows = table[self.ids].float() * (meta["d_model"] ** 0.5 if gemma else 1.0)

    def prompt(self, vector: torch.Tensor) -> torch.Tensor:
        rows = self.rows.clone()
        rows[self.place] = vector / vector.norm() * self.scale
        return rows

    @torch.inference_mode()
    def write(self, vector: torch.Tensor, tokens: int) -> str:
        """The likeliest continuation, one token after the other, without any cache."""
        rows, ids = self.prompt(vector), []
        while len(ids) < tokens and self.tokenizer.eos_token_id not in ids:
            ids.append(int(self.model(inputs_embeds=rows[None]).logits[0, -1].argmax()))
            rows = torch.cat([rows, self.model.get_input_embeddings()(torch.tensor(ids[-1:]))])
            if "</explanation>" in self.tokenizer.decode(ids):
                break
        text = self.tokenizer.decode([i for i in ids if i != self.tokenizer.eos_token_id])
        return text.partition("</explanation>")[0].split("<explanation>", 1)[-1].strip()


class Critic:
    """The reconstructor's half: the last token's state, without final norm, through the head."""

    def __init__(self, directory: Path) -> None:
        self.meta = sidecar_of(directory)
        assert self.meta["role"] in ("ar", "critic")
        assert float(self.meta["extraction"]["mse_scale"]) > 0
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        first = self.tokenizer("x", add_special_tokens=True)["input_ids"][0]
        assert self.tokenizer.bos_token_id in (None, first)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.model.lm_head = torch.nn.Identity()
        assert hasattr(self.model.model, "norm")
        self.model.model.norm = torch.nn.Identity()
        width = self.model.config.hidden_size
        self.head = torch.nn.Linear(width, width, bias=False)
        self.head.load_state_dict(load_file(directory / "value_head.safetensors"))

    @torch.inference_mode()
    def reconstruct(self, text: str) -> torch.Tensor:
        prompt = _template(self.meta, "ar", "critic", explanation=text)
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=True)["input_ids"]
        row: torch.Tensor = self.head(
            self.model.model(ids, use_cache=False).last_hidden_state[0, -1]
        )
        return row


def _template(meta: dict[str, Any], newer: str, older: str, **values: str) -> str:
    templates = meta["prompt_templates"]
    text: str = (templates.get(newer) or templates[older]).format(**values)
    return text
