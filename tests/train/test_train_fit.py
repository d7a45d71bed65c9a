from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nae_monitor.errors import ConfigurationError, InputDataError
from nae_monitor.train.batches import another_row, endless_batches, length_batches, padded
from nae_monitor.train.files import replacing
from nae_monitor.train.fit import FitOptions, TrainingFailedError, fit
from nae_monitor.train.lora import LoraOptions, load_state, save_state, schedule

LORA = LoraOptions(learning_rate=0.05, batch_size=4, warmup_steps=2)
DATA = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
LENGTHS = [1 + n % 5 for n in range(30)]


class KilledError(Exception):
    pass


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def train(directory: Path, model: nn.Module, **changes: Any) -> int:
    """Fit with a step that also depends on its number; ``bad`` spoils that step."""
    bad, spoil = changes.pop("bad", None), changes.pop("spoil", float("nan"))
    options = FitOptions(**({"steps": 6, "save_every": 3, "evaluate_every": 2} | changes))

    def step(rows: np.ndarray, number: int) -> torch.Tensor:
        if number == bad and spoil is KilledError:
            raise KilledError
        loss = (model(DATA[rows]) - number).square().mean()
        if number == bad and spoil == "gradient":
            return loss + (model[0].weight.sum() * 0).sqrt()  # value 0, gradient infinite
        return loss * spoil if number == bad else loss

    return fit(model, LENGTHS, step, lambda: {"x": 1.0}, directory, LORA, options)


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("killed_at", [3, 4, 5])
def test_a_killed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    killed_at: int, tmp_path: Path
) -> None:
    whole = network()
    assert train(tmp_path / "whole", whole) == 6
    with pytest.raises(KilledError):
        train(tmp_path / "killed", network(), bad=killed_at, spoil=KilledError)
    resumed = network()
    assert train(tmp_path / "killed", resumed) == 6
    assert_same(parameters(resumed), parameters(whole))
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [2, 4, 6]


def test_a_torn_line_of_metrics_does_not_stop_a_resume(tmp_path: Path) -> None:
    train(tmp_path, network(), steps=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    train(tmp_path, network())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), "gradient"])
def test_a_bad_loss_or_gradient_stops_with_the_last_good_state_kept(
    spoil: Any, tmp_path: Path
) -> None:
    with pytest.raises(TrainingFailedError, match=r"at step 5; .*state\.safetensors is the last"):
        train(tmp_path, network(), bad=5, spoil=spoil)
    restored = network()
    assert load_state(tmp_path / "state.safetensors", restored, None) == 3
    assert all(torch.isfinite(p).all() for p in parameters(restored))
    assert train(tmp_path, network()) == 6  # and it can go on once the cause is gone


def test_a_bad_first_step_says_that_nothing_was_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailedError, match="at step 0; no state was saved"):
        train(tmp_path, network(), bad=0)


def test_the_time_limit_stops_after_a_step_and_the_run_resumes(tmp_path: Path) -> None:
    whole = network()
    train(tmp_path / "whole", whole)
    done, model = 0, network()
    calls = 0
    while done < 6:
        model = network()
        before, done = done, train(tmp_path / "limited", model, time_limit_s=0.0)
        calls += 1
        assert done == before + 1
    assert calls == 6
    assert_same(parameters(model), parameters(whole))


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from nae_monitor.errors import ConfigurationError
from nae_monitor.train.lora import load_state, save_state
path = Path(sys.argv[1])
model = torch.nn.Linear(40, 40)
optimizer = torch.optim.AdamW(model.parameters())
save_state(path, model, optimizer, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_state(path, model, optimizer, 2)
except ConfigurationError as error:
    print(error)
print("step", load_state(path, model, optimizer), [p.name for p in path.parent.iterdir()])
"""


def test_a_full_disk_keeps_the_previous_state_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    message, state = result.stdout.splitlines()
    assert message.startswith(f"{path}: cannot be written: ")
    assert "File too large" in message
    assert "resumes" in message
    assert state == "step 1 ['state.safetensors']"


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written: Not a directory"):
        train(tmp_path / "file" / "run", network())


def test_a_failed_replacement_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")

    def fail() -> None:
        with replacing(place) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ConfigurationError, match="No space left"):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x00" * 64])
def test_a_damaged_state_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(InputDataError, match=r"state\.safetensors is damaged"):
        train(tmp_path, network())


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    save_state(tmp_path / "state.safetensors", model, torch.optim.AdamW(model.parameters()), 1)
    with pytest.raises(InputDataError, match=r"0\.weight is \(5, 3\), expected \(4, 3\)"):
        train(tmp_path, network())


@given(st.integers(0, 500), st.integers(1, 400), st.integers(0, 100))
def test_the_learning_rate_warms_up_then_falls_to_a_tenth(
    step: int, total: int, warmup: int
) -> None:
    options = LoraOptions(learning_rate=1.0, warmup_steps=warmup)
    rate = schedule(step, total, options)
    assert 0 < rate <= 1.0 + 1e-6
    following = schedule(step + 1, total, options)
    if step + 1 < warmup:
        assert following > rate
    elif step >= warmup:
        assert following <= rate + 1e-6
    if step >= max(total, warmup):
        floor = 0.1 if total > warmup or step > warmup else 1.0
        assert math.isclose(rate, floor, abs_tol=1e-5)


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=300)


@given(lengths, st.integers(1, 9), st.integers(0, 3))
def test_every_row_comes_once_an_epoch_but_for_the_short_last_batch(
    lengths: list[int], size: int, epoch: int
) -> None:
    batches = length_batches(lengths, size, seed=1, epoch=epoch)
    rows = np.concatenate(batches).tolist()
    assert len(rows) == len(set(rows))
    missing = len(lengths) - len(rows)
    assert missing == (len(lengths) % size if len(lengths) >= size else 0)


@given(lengths, st.integers(1, 9), st.integers(0, 40))
def test_batches_of_a_resumed_run_go_on_where_they_stopped(
    lengths: list[int], size: int, first: int
) -> None:
    whole = endless_batches(lengths, size, seed=2, first_step=0)
    for _ in range(first):
        next(whole)
    resumed = endless_batches(lengths, size, seed=2, first_step=first)
    for _ in range(5):
        assert next(whole).tolist() == next(resumed).tolist()


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_padding_stands_to_the_right_under_a_zero_mask(rows: list[list[int]]) -> None:
    ids, mask = padded(rows, pad=0)
    for row, values, real in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        assert values == row + [0] * (len(values) - len(row))
        assert real == [int(v > 0) for v in values]


@given(st.integers(2, 200), st.integers(0, 5))
def test_another_row_is_never_the_row_itself(count: int, seed: int) -> None:
    other = another_row(count, seed=seed)
    assert sorted(other.tolist()) == list(range(count))
    assert (other != np.arange(count)).all()
