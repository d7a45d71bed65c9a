from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nae_monitor.errors import InputDataError
from nae_monitor.train import metrics
from nae_monitor.train.best import BEST, STATE, final_state
from nae_monitor.train.fit import FitOptions, fit, is_finished, read_metrics
from nae_monitor.train.lora import LoraOptions, load_state, state_facts
from nae_monitor.train.metrics import STEPS, StepLog, StepRow

LORA = LoraOptions(learning_rate=0.05, batch_size=2, warmup_steps=0)
EVERY = {"evaluate_every": 1, "save_every": 1}


class KilledError(Exception):
    pass


class Trial:
    """A training whose validation measure is dictated: one value a step."""

    def __init__(self, values: Sequence[float], name: str = "validation_loss") -> None:
        self.model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.model.weight.fill_(1.0)
        self.values, self.name, self.step = list(values), name, 0
        self.weights: dict[int, float] = {0: 1.0}

    def loss(self, rows: np.ndarray, number: int) -> torch.Tensor:
        self.step = number + 1
        return self.model(torch.ones(len(rows), 1)).square().mean()

    def evaluate(self) -> dict[str, float]:
        self.weights[self.step] = self.model.weight.item()
        return {self.name: self.values[self.step - 1]}

    def run(self, directory: Path, options: FitOptions) -> int:
        return fit(self.model, [1] * 8, self.loss, self.evaluate, directory, LORA, options)


def options(steps: int, **changes: object) -> FitOptions:
    return FitOptions(steps, **(EVERY | {"measure": "validation_loss"} | changes))  # type: ignore[arg-type]


def weight_of(path: Path) -> float:
    model = nn.Linear(1, 1, bias=False)
    load_state(path, model, None)
    return model.weight.item()


def test_a_run_without_improvement_stops_early_and_keeps_its_best_state(tmp_path: Path) -> None:
    trial = Trial([3.0, 1.0, 2.0, 2.0, 0.5])
    assert trial.run(tmp_path, options(5, patience=2)) == 4
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert final_state(tmp_path) == tmp_path / BEST
    assert weight_of(tmp_path / BEST) == pytest.approx(trial.weights[2])
    assert weight_of(tmp_path / STATE) == pytest.approx(trial.weights[4])
    assert is_finished(tmp_path, options(5, patience=2))
    assert not is_finished(tmp_path, options(5, patience=3))


def test_a_run_that_stopped_early_stays_stopped_when_started_again(tmp_path: Path) -> None:
    Trial([1.0, 2.0, 2.0, 0.1]).run(tmp_path, options(4, patience=2))
    again = Trial([1.0, 2.0, 2.0, 0.1])
    assert again.run(tmp_path, options(4, patience=2)) == 3
    assert again.step == 0
    assert again.run(tmp_path, options(4, patience=3)) == 4  # more patience goes on
    assert state_facts(tmp_path / BEST)["step"] == 4


def test_a_measure_that_should_grow_is_best_where_it_is_largest(tmp_path: Path) -> None:
    trial = Trial([0.1, 0.7, 0.4], "fve_gold")
    trial.run(tmp_path, options(3, measure="fve_gold"))
    facts = state_facts(tmp_path / BEST)
    assert (facts["step"], facts["value"]) == (2, 0.7)


def test_a_measure_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    Trial([float("nan"), 2.0, float("-inf")]).run(tmp_path, options(3))
    assert state_facts(tmp_path / BEST)["step"] == 2


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_kill_changes_neither_the_best_state_nor_the_stop(lost: int, tmp_path: Path) -> None:
    values = [3.0, 2.0, 1.0, 4.0, 4.0, 4.0]
    whole = Trial(values)
    assert whole.run(tmp_path / "whole", options(6, patience=2, save_every=2)) == 5

    killed = Trial(values)
    measured = killed.evaluate

    def kill() -> dict[str, float]:
        found = measured()
        if killed.step == lost + 1:
            raise KilledError
        return found

    killed.evaluate = kill  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        killed.run(tmp_path / "killed", options(6, patience=2, save_every=2))
    assert Trial(values).run(tmp_path / "killed", options(6, patience=2, save_every=2)) == 5
    assert weight_of(tmp_path / "killed" / BEST) == weight_of(tmp_path / "whole" / BEST)
    assert state_facts(tmp_path / "killed" / BEST)["step"] == 3


def test_a_best_state_of_another_run_or_measure_or_a_damaged_one_is_not_kept(
    tmp_path: Path,
) -> None:
    Trial([1.0, 1.0]).run(tmp_path, options(2))
    (tmp_path / STATE).unlink()  # as the message of a damaged state advises
    Trial([5.0, 4.0]).run(tmp_path, options(2))
    assert state_facts(tmp_path / BEST)["value"] == 4.0
    Trial([0, 0, 0.3], "gap").run(tmp_path, options(3, measure="gap"))
    assert state_facts(tmp_path / BEST)["value"] == 0.3
    (tmp_path / BEST).write_bytes(b"torn")
    Trial([0, 0, 0, 0.2], "gap").run(tmp_path, options(4, measure="gap"))
    assert state_facts(tmp_path / BEST)["value"] == 0.2


def test_without_a_measure_the_last_state_is_the_final_one(tmp_path: Path) -> None:
    Trial([1.0, 2.0]).run(tmp_path, options(2, measure=None, patience=1))
    assert final_state(tmp_path) == tmp_path / STATE
    assert state_facts(tmp_path / STATE)["step"] == 2


def test_a_fresh_run_begins_with_the_parameters_it_is_given(tmp_path: Path) -> None:
    first = Trial([1.0, 1.0])
    first.run(tmp_path / "a", options(2))
    second = Trial([1.0])
    with torch.no_grad():
        second.model.weight.fill_(9.0)
    second.run(tmp_path / "b", options(1, start=tmp_path / "a" / STATE))
    assert abs(second.weights[1] - first.weights[2]) < 0.1
    with pytest.raises(InputDataError, match="is missing"):
        Trial([1.0]).run(tmp_path / "c", options(1, start=tmp_path / "nowhere"))


def test_every_step_has_a_row_with_loss_rate_and_speed(tmp_path: Path) -> None:
    seen: list[StepRow] = []
    Trial([1.0] * 4).run(tmp_path, options(4, on_step=seen.append))
    rows = read_metrics(tmp_path / STEPS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] == [row.step for row in seen]
    assert all(set(row) == {"step", "loss", "rate", "tokens_per_s"} for row in rows)
    assert all(row.examples == 2 and row.tokens == 2 for row in seen)


def test_rows_of_steps_lost_with_a_kill_are_written_once(tmp_path: Path) -> None:
    Trial([1.0] * 4).run(tmp_path, options(4, save_every=9))
    with (tmp_path / STEPS).open("a") as file:
        file.write(json.dumps({"step": 5, "loss": 1.0}) + "\n" + '{"step": 6, "lo')
    Trial([1.0] * 6).run(tmp_path, options(6))
    assert [row["step"] for row in read_metrics(tmp_path / STEPS)] == [1, 2, 3, 4, 5, 6]


def test_the_file_of_steps_stays_small_however_long_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_STEP_ROWS", 10)
    log = StepLog(tmp_path / STEPS, 95)
    for step in range(1, 96):
        log.add(StepRow(step, float(step), 1e-3, 2, 20, 0.5))
    log.flush()
    rows = read_metrics(tmp_path / STEPS)
    assert len(rows) == 10
    assert rows[0] == {"step": 10, "loss": 5.5, "rate": 1e-3, "tokens_per_s": 40.0}
    assert rows[-1]["step"] == 95
