from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nae_monitor.train.processes import Crew, is_first, own_device, process_count

# One script for both: what differs is the batch size and how many processes it is started as.
TRAINING = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from nae_monitor.train.fit import FitOptions, fit
from nae_monitor.train.lora import LoraOptions
from nae_monitor.train.processes import first_alone, process_count

torch.set_num_threads(1)
directory, batch = Path(sys.argv[1]), int(sys.argv[2])
data = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
labels = (data @ torch.randn(6, 3, generator=torch.Generator().manual_seed(2))).argmax(-1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
evaluations = 0

def step(rows: np.ndarray, number: int) -> torch.Tensor:
    return cross_entropy(model(data[rows]), labels[rows])

def evaluate() -> dict[str, float]:
    global evaluations
    evaluations += 1
    return {"validation_loss": float(cross_entropy(model(data), labels).detach())}

reported = []
lora = LoraOptions(learning_rate=0.03, batch_size=batch, warmup_steps=2)
for steps in (6, 12):  # the second call resumes the first one's state
    options = FitOptions(
        steps, evaluate_every=3, save_every=3, measure="validation_loss", patience=9,
        time_limit_s=600.0,
    )
    done = fit(model, [1] * 64, step, evaluate, directory, lora, options, reported.append)
alone = []
first_alone(lambda: alone.append(1), "cpu")
print(f"processes {process_count()} done {done} measured {len(reported)} {evaluations}"
      f" alone {len(alone)}", flush=True)
"""


def start(
    tmp_path: Path, processes: int, name: str, batch: int, source: str = TRAINING
) -> tuple[list[str], list[str]]:
    """What each process wrote to its output and its errors, started as a launcher starts them."""
    script = tmp_path / f"{name}.py"
    script.write_text(source)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(processes),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "ACCELERATE_USE_CPU": "true",
        }
        command = [sys.executable, str(script), str(tmp_path / name), str(batch)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    ends = [process.communicate(timeout=280) for process in started]
    return [out for out, _ in ends], [error for _, error in ends]


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_train_as_one_does_with_the_doubled_batch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    said, errors = start(tmp_path, 2, "two", 4)
    assert [line.strip() for line in said] == [
        "processes 2 done 12 measured 4 4 alone 1",
        "processes 2 done 12 measured 0 0 alone 0",
    ], errors
    said, errors = start(tmp_path, 1, "one", 8)
    assert said[0].strip() == "processes 1 done 12 measured 4 4 alone 1", errors
    for name, values in (
        ("steps.jsonl", ("step", "loss", "rate")),
        ("metrics.jsonl", ("step", "loss", "validation_loss")),
    ):
        a, b = rows(tmp_path / "one" / name), rows(tmp_path / "two" / name)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert [y[v] for v in values] == pytest.approx([x[v] for v in values], abs=2e-5)
    losses = [row["loss"] for row in rows(tmp_path / "one" / "steps.jsonl")]
    assert losses[-1] < losses[0]
    a, b = (load_file(tmp_path / n / "state.safetensors") for n in ("one", "two"))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5)


BAD = TRAINING.replace(
    "    return cross_entropy(model(data[rows]), labels[rows])",
    "    import os\n"
    "    spoil = float('nan') if number == 4 and os.environ['RANK'] == '1' else 1.0\n"
    "    return cross_entropy(model(data[rows]), labels[rows]) * spoil",
)


def test_a_bad_loss_in_one_process_ends_all_with_the_last_good_state_kept(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    _, errors = start(tmp_path, 2, "bad", 4, BAD)
    assert all("not finite at step 4" in error for error in errors)
    assert [row["step"] for row in rows(tmp_path / "bad" / "steps.jsonl")] == [1, 2, 3, 4]
    kept = load_file(tmp_path / "bad" / "state.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())


def test_one_process_is_the_plain_loop() -> None:
    model = nn.Linear(2, 1)
    crew = Crew.of(model, lambda rows, number: model(torch.ones(len(rows), 2)).sum())
    assert crew.accelerator is None
    assert (crew.count, crew.is_first, process_count(), is_first()) == (1, True, 1, True)
    loss, value = crew.loss(np.arange(3), 0)
    assert loss.item() == value
    assert crew.agree(lambda: "yes") == "yes"
    crew.finish()


@pytest.mark.parametrize(
    ("count", "device", "expected"),
    [
        ("1", "cuda", "cuda"),
        ("4", "cuda", "cuda:2"),
        ("4", "cpu", "cpu"),
        ("4", "cuda:1", "cuda:1"),
    ],
)
def test_every_process_takes_the_graphics_card_of_its_own_rank(
    count: str, device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_device(device) == expected
