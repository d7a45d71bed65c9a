"""``nla inspect``: contracts in plain words, and every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nla

Cli = Callable[..., Any]


@pytest.fixture
def pair(tiny: Any, tmp_path: Path) -> tuple[Path, Path]:
    av, ar = tiny_nla.write_adapters(tmp_path, tiny.target)
    for directory in (av, ar):
        sidecar = tiny_nla.read_sidecar(directory)
        tiny_nla.write_sidecar(directory, sidecar | {"base_model": str(tiny.target)})
    return av, ar


def test_both_halves_are_described_with_the_state_they_read(
    cli: Cli, pair: tuple[Path, Path]
) -> None:
    done = cli("nla", "inspect", *pair, "--json")
    assert done.code == 0, done.err
    av, ar = done.objects
    assert av["role"] == "verbalizer (AV)"
    assert ar["role"] == "reconstructor (AR)"
    assert av["reads"] == ar["predicts"] == f"hidden_states[{av['layer_index'] + 1}]"
    assert av["form"].startswith("LoRA of rank ")


def test_the_terminal_shows_the_prompt_and_the_scale(cli: Cli, pair: tuple[Path, Path]) -> None:
    done = cli("nla", "inspect", pair[0])
    assert done.code == 0, done.err
    scale = tiny_nla.read_sidecar(pair[0])["extraction"]["injection_scale"]
    assert str(scale) in done.out
    assert "{injection_char}" in done.out


def test_problems_of_both_halves_are_named_together(cli: Cli, pair: tuple[Path, Path]) -> None:
    av, ar = pair
    sidecar = tiny_nla.read_sidecar(av)
    sidecar["tokens"]["injection_left_neighbor_id"] += 1
    tiny_nla.write_sidecar(av, sidecar)
    (ar / "value_head.safetensors").unlink()
    done = cli("nla", "inspect", av, ar)
    assert done.code == 2
    assert "injection_left_neighbor_id" in done.err
    assert "value_head.safetensors" in done.err


def test_a_directory_that_is_no_checkpoint_is_a_clear_error(cli: Cli, tmp_path: Path) -> None:
    done = cli("nla", "inspect", tmp_path)
    assert done.code == 2
    assert "nla_meta.yaml" in done.err
