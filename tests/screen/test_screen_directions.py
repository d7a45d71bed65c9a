"""Files of directions, and what scores along them mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nae_monitor.errors import ConfigurationError
from nae_monitor.records import Phase
from nae_monitor.screen import Directions, read_directions, write_directions
from nae_monitor.screen.directions import SHARES, calibrated

D = 6


def made(seed: int = 0, rows: int = 4_000, names: tuple[str, ...] = ("up", "down")) -> Directions:
    random = torch.Generator().manual_seed(seed)
    return calibrated(
        names,
        torch.randn(len(names), D, generator=random),
        torch.randn(rows, D, generator=random),
        torch.arange(rows) % 3 == 0,
        base_model="m",
        layer=2,
        provenance={"seed": seed},
    )


def test_directions_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_directions(tmp_path / "a.safetensors", made())
    found = read_directions(tmp_path / "a.safetensors")
    write_directions(tmp_path / "b.safetensors", found)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (found.names, found.base_model, found.layer) == (("up", "down"), "m", 2)
    assert found.provenance == {"seed": 0}


@settings(max_examples=25)
@given(st.integers(0, 999), st.integers(1, 9))
def test_scores_are_deviations_from_what_ordinary_rows_of_the_phase_show(
    seed: int, count: int
) -> None:
    found = made(seed)
    random = torch.Generator().manual_seed(seed + 1)
    rows = 7 * torch.randn(count, D, generator=random)
    is_prompt = torch.rand(count, generator=random) < 0.5
    scores = found.scores(rows, is_prompt).numpy()
    for i in range(count):
        scale = found.scales[Phase.PROMPT if is_prompt[i] else Phase.COMPLETION]
        row = rows[i].numpy() / np.linalg.norm(rows[i].numpy())
        for j in range(2):
            raw = float(np.dot(row, found.weights[j].numpy()))
            expected = (raw - float(scale.means[j])) / float(scale.deviations[j])
            assert scores[i, j] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05, 0.01])
@pytest.mark.parametrize("phase", list(Phase))
def test_about_the_share_asked_for_of_ordinary_rows_reaches_the_threshold(
    share: float, phase: Phase
) -> None:
    found = made(rows=30_000)
    random = torch.Generator().manual_seed(7)
    rows = torch.randn(30_000, D, generator=random)
    scores = found.scores(rows, torch.full((30_000,), phase is not Phase.COMPLETION)).amax(1)
    reached = float((scores >= found.threshold(phase, share)).float().mean())
    assert reached == pytest.approx(share, rel=0.25)


def test_a_smaller_share_never_has_a_lower_threshold() -> None:
    found = made()
    thresholds = [found.threshold(Phase.PROMPT, share) for share in (0.9, *SHARES, 1e-9)]
    assert thresholds == sorted(thresholds)


def test_a_direction_can_be_named_by_a_rule(tmp_path: Path) -> None:
    from nae_monitor.detect.directions import read_direction

    write_directions(tmp_path / "a.safetensors", made())
    found = read_direction("a.safetensors#up", str(tmp_path / "rule.yaml"))
    assert found.vector is not None
    assert np.allclose(found.vector, made().weights[0].numpy(), atol=1e-6)


def test_rows_of_one_phase_alone_make_no_scale() -> None:
    with pytest.raises(ValueError, match="no ordinary rows of the prompt"):
        calibrated(
            ("a",), torch.ones(1, D), torch.randn(50, D), torch.zeros(50, dtype=torch.bool),
            base_model="m", layer=2, provenance={},
        )  # fmt: skip


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def told(**values: Any) -> Change:
    return lambda metadata, tensors: metadata.update(values)


def held(name: str, tensor: torch.Tensor | None) -> Change:
    def change(metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor

    return change


@pytest.mark.parametrize(
    "change",
    [
        told(format="2"),
        told(names=[]),
        told(names=["up", "elsewhere"]),
        told(names=["up", 3]),
        told(names="up"),
        told(base_model=None),
        told(layer="two"),
        held("up", torch.ones(D + 1)),
        held("up", torch.zeros(D)),
        held("up", torch.full((D,), torch.nan)),
        held("up", torch.ones(D, 2)),
        held("calibration.prompt", None),
        held("calibration.completion", torch.ones(3, 2)),
        held("calibration.prompt", torch.full((2, 2), torch.inf)),
        held("calibration.prompt", torch.tensor([[0.0, 0.0], [0.0, 1.0]])),
        held("quantiles.prompt", torch.arange(3.0)),
        held("quantiles.completion", torch.arange(64.0).flip(0)),
        held("quantiles.completion", torch.full((64,), torch.nan)),
    ],
)
def test_a_file_that_is_no_set_of_directions_is_refused(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "a.safetensors"
    write_directions(path, made())
    good = read_directions(path)
    tensors = {name: row.clone() for name, row in zip(good.names, good.weights, strict=True)}
    for phase, scale in good.scales.items():
        tensors[f"calibration.{phase}"] = torch.stack([scale.means, scale.deviations], 1)
        tensors[f"quantiles.{phase}"] = scale.largest
    metadata = {
        "format": "1", "names": list(good.names), "base_model": "m", "layer": 2, "provenance": {},
    }  # fmt: skip
    save_file(tensors, path, {"screen": json.dumps(metadata)})
    assert read_directions(path).names == good.names  # the change alone is what is refused
    change(metadata, tensors)
    save_file(tensors, path, {"screen": json.dumps(metadata)})
    with pytest.raises(ConfigurationError, match=r"a\.safetensors"):
        read_directions(path)


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_and_never_more(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        read_directions(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="screen build"):
        read_directions(tmp_path / "none.safetensors")
