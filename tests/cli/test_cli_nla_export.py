"""``nla export --merged``, and ``nla decode`` of what it wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch
from transformers import AutoModelForCausalLM

from nae_monitor.cli.generate import chat_inputs
from nae_monitor.decode import load_nla
from nae_monitor.models import load_target
from nae_monitor.settings import NlaSettings

Cli = Callable[..., Any]


@pytest.fixture
def adapters(tiny: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A pair in the adapter form over the tiny target."""
    av, ar = tiny_nla.write_adapters(tmp_path, tiny.target)
    for directory in (av, ar):
        sidecar = tiny_nla.read_sidecar(directory)
        tiny_nla.write_sidecar(directory, sidecar | {"base_model": str(tiny.target)})
    return av, ar


def decoded(cli: Cli, tiny: Any, av: Path | str, ar: Path | str) -> list[dict[str, Any]]:
    done = cli(
        "nla", "decode", "--prompt", "dogs and cats", "--position", "3", "--position", "-1",
        "--target", tiny.target, "--av", av, "--ar", ar, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    return list(done.objects)


def test_a_merged_pair_decodes_as_its_adapters_do(
    cli: Cli, tiny: Any, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    av, ar = adapters
    out = tmp_path / "merged"
    done = cli(
        "nla", "export", "--merged", "--av", av, "--ar", ar, "--out", out,
        "--dtype", "float32", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (said,) = done.objects
    assert (said["nla_id"], said["dtype"]) == ("tiny-l2-v1", "float32")
    assert said["av"]["path"] == str(out / "av")
    size_bytes = sum(p.stat().st_size for p in (out / "ar").iterdir())
    assert said["ar"] == {"path": str(out / "ar"), "bytes": size_bytes}
    merged = decoded(cli, tiny, said["av"]["path"], said["ar"]["path"])
    assert merged == decoded(cli, tiny, av, ar)


def test_weights_are_bfloat16_unless_asked_otherwise_and_the_places_are_told(
    cli: Cli, tiny: Any, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    done = cli("nla", "export", "--merged", "--av", tiny.av, "--ar", tiny.ar, "--out", out)
    assert done.code == 0, done.err
    assert [line.split("  ")[0] for line in done.out.splitlines()] == [
        str(out / "av"),
        str(out / "ar"),
    ]
    for role in ("av", "ar"):
        assert json.loads((out / role / "config.json").read_text())["dtype"] == "bfloat16"


def test_decoding_a_prompt_reads_the_state_behind_the_block_that_the_sidecar_names(
    cli: Cli, tiny: Any
) -> None:
    target = load_target(str(tiny.target))
    model = AutoModelForCausalLM.from_pretrained(tiny.target).eval()
    with torch.inference_mode():
        inputs = chat_inputs(target, "dogs and cats")
        states = model(**inputs, output_hidden_states=True).hidden_states[tiny_nla.K + 1][0]
    nla = load_nla(tiny.av, tiny.ar, settings=NlaSettings(), resolve_base=Path)
    expected = nla.decode(states[[3, -1]])
    found = decoded(cli, tiny, tiny.av, tiny.ar)
    assert [row["explanation"] for row in found] == [d.text for d in expected]
    assert [row["cosine"] for row in found] == pytest.approx([d.cosine for d in expected], abs=1e-5)


def test_the_form_must_be_named(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    done = cli("nla", "export", "--av", tiny.av, "--ar", tiny.ar, "--out", tmp_path / "merged")
    assert (done.code, done.out) == (2, "")
    assert "--merged" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_something_in_it_is_left_alone(
    cli: Cli, tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = cli("nla", "export", "--merged", "--av", tiny.av, "--ar", tiny.ar, "--out", tmp_path)
    assert done.code == 2
    assert "is already there and not empty" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_every_problem_of_a_broken_pair_is_told_and_nothing_written(
    cli: Cli, tiny: Any, tmp_path: Path
) -> None:
    av, ar = shutil.copytree(tiny.av, tmp_path / "av"), shutil.copytree(tiny.ar, tmp_path / "ar")
    sidecar = tiny_nla.read_sidecar(ar)
    tiny_nla.write_sidecar(ar, sidecar | {"ar": {"num_hidden_layers": 1}, "tokens": {}})
    out = tmp_path / "merged"
    done = cli("nla", "export", "--merged", "--av", av, "--ar", ar, "--out", out)
    assert done.code == 2
    assert "tokens.critic_suffix_ids is missing" in done.err
    assert not out.exists()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_other_precisions_are_refused(dtype: str, cli: Cli, tiny: Any, tmp_path: Path) -> None:
    done = cli(
        "nla", "export", "--merged", "--av", tiny.av, "--ar", tiny.ar, "--out", tmp_path / "m",
        "--dtype", dtype,
    )  # fmt: skip
    assert done.code == 2
    assert "--dtype" in done.err
