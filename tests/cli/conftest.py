from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch
import yaml

from nae_monitor.cli import run

torch.set_num_threads(1)

RULE = """
schema_version: 1
title: Anything at all
id: 7a0f4f2e-3f43-4b0e-9d6c-1c9f6a1b2c3d
name: anything
version: 1
status: experimental
severity: low
description: Matches every explanation that is not empty.
author: tests
date: 2026-01-01
detection:
  any_text: {regex: ['.']}
  condition: any_text
tests:
  - {name: a word, explanation: 'word', expect: match}
"""


@dataclass(frozen=True)
class Tiny:
    """A target, an NLA pair for its layer, and a target of another width."""

    target: Path
    wide_target: Path
    av: Path
    ar: Path


@dataclass(frozen=True)
class Outcome:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Built once; treat the directories as read-only."""
    root = tmp_path_factory.mktemp("tiny")
    base = tiny_nla.write_base(root / "base", "llama")
    av, ar = tiny_nla.write_official(root, base)
    tokenizer = tiny_nla.build_tokenizer(bos=True)
    config = copy.deepcopy(tiny_nla.build_config("llama", len(tokenizer), tiny_nla.LAYERS))
    config.update({"hidden_size": 2 * tiny_nla.D, "head_dim": tiny_nla.D // 2})
    wide = tiny_nla.AutoModelForCausalLM.from_config(config)
    wide.save_pretrained(root / "wide")
    tokenizer.save_pretrained(root / "wide")
    return Tiny(base, root / "wide", av, ar)


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    path = tmp_path / "rules" / "anything.yaml"
    path.parent.mkdir()
    path.write_text(RULE)
    return path


@pytest.fixture
def settings(tiny: Tiny, rule: Path) -> dict[str, Any]:
    """A configuration over the tiny pair that decodes much and fast."""
    return {
        "target": {"model": str(tiny.target)},
        "nla": {"av": str(tiny.av), "ar": str(tiny.ar), "max_new_tokens": 8},
        "capture": {"min_position": 0},
        "screen": {
            "every_n_tokens": 2,
            "random_share": 0.0,
            "budget": {"decodes_per_s": 1000, "per_request": 4},
        },
        "detect": {"rules": [str(rule)], "encoder": None},
        "alert": {"sinks": ["console"]},
        "privacy": {"content": "full"},
    }


@pytest.fixture
def config(tmp_path: Path, settings: dict[str, Any]) -> Callable[..., str]:
    """Writes the configuration, sections updated as asked; returns its path."""

    def write(**sections: dict[str, Any]) -> str:
        merged = {name: {**value, **sections.get(name, {})} for name, value in settings.items()}
        path = tmp_path / "monitor.yaml"
        path.write_text(yaml.safe_dump({**sections, **merged}))
        return str(path)

    return write


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process."""

    def call(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("dogs and cats\n\na harmful request\n")
    return path


@pytest.fixture
def recording(
    cli: Callable[..., Outcome], config: Callable[..., str], prompts: Path, tmp_path: Path
) -> Path:
    """A recording of two short generations, made by the command."""
    done = cli(
        "record", "-c", config(), "-p", prompts, "-o", tmp_path / "rec", "--json",
        "--max-new-tokens", "6",
    )  # fmt: skip
    assert done.code == 0, done.err
    return Path(done.objects[-1]["recording"])
