"""Decode steps whose rows are handed on together: what is told is what single steps would tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from capture_oracle import EOS, LAYER, PAD, Recorder, check_rows, left_padded
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.capture import TransformersTap, request_scope
from nae_monitor.capture.gathering import GatheredSteps, learn_steps
from nae_monitor.capture.sequences import Sequences
from nae_monitor.health import Health
from nae_monitor.host_copy import HostCopy
from nae_monitor.settings import CaptureSettings

Build = Callable[..., TransformersTap]
PROMPTS = [[5, 6, 7, 8], [9, 10]]
TWELVE: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}


def batches(recorder: Recorder) -> int:
    """How often rows were told; each telling names both sequences."""
    return sum(kind == "rows" for kind, _ in recorder.events) // len(PROMPTS)


def test_rows_of_so_many_steps_come_together_and_equal_the_hidden_states(
    model: Any, tap: Build, recorder: Recorder
) -> None:
    with tap(model, gather_steps=4, gather_s=10.0):
        model.generate(**left_padded(PROMPTS), **TWELVE)
    assert check_rows(model, recorder) == 4 + 2 + 2 * 11
    assert batches(recorder) == 1 + 3  # the prompts; 4, 4 and 3 steps


@pytest.mark.parametrize("settings", [{"gather_steps": 1}, {"gather_s": 0.0}])
def test_rows_come_step_by_step_where_nothing_is_to_be_gathered(
    llama_model: Any, tap: Build, recorder: Recorder, settings: dict[str, Any]
) -> None:
    with tap(llama_model, **settings):
        llama_model.generate(**left_padded(PROMPTS), **TWELVE)
    assert check_rows(llama_model, recorder) == 28
    assert batches(recorder) == 1 + 11


def test_rows_come_step_by_step_where_a_generation_may_be_stopped(
    llama_model: Any, recorder: Recorder, health: Health
) -> None:
    class Never:
        def stops(self, *_: object) -> bool:
            return False

        def stopped(self, *_: object) -> None:
            raise AssertionError

    watch = TransformersTap(
        llama_model,
        None,
        layer=LAYER,
        settings=CaptureSettings(min_position=0, gather_steps=8, gather_s=10.0),
        listener=recorder,
        health=health,
        model_name="tiny",
        stopping=Never(),
    )
    with watch:
        llama_model.generate(**left_padded(PROMPTS), **TWELVE | {"pad_token_id": PAD})
    assert batches(recorder) == 1 + 11


def test_what_is_gathered_when_generate_fails_is_still_told(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    def fail(ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        if ids.shape[1] >= 10:
            raise MemoryError
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(MemoryError), tap(llama_model, gather_s=10.0), request_scope("r"):
        llama_model.generate(torch.tensor([PROMPTS[0]]), **TWELVE, stopping_criteria=[fail])
    assert check_rows(llama_model, recorder, every=False) == 9
    assert health.coverage("r").seen_tokens == 9
    assert recorder.finished == ["r"]


def test_a_step_whose_block_was_not_seen_costs_its_own_rows_alone(
    llama_model: Any, tap: Build, recorder: Recorder, health: Health
) -> None:
    watch = tap(llama_model, gather_s=10.0)
    calls = []

    def sometimes(module: Any, args: Any, output: Any) -> None:
        calls.append(1)
        if len(calls) not in (4, 5):
            through(module, args, output)

    with watch, request_scope("r"):
        hooks = llama_model.model.layers[LAYER - 1]._forward_hooks
        ((key, through),) = [
            (key, hook)
            for key, hook in hooks.items()
            if "TransformersTap" in getattr(hook, "__qualname__", "")
        ]
        hooks[key] = sometimes
        llama_model.generate(torch.tensor([PROMPTS[0]]), **TWELVE)
    assert recorder.positions("r") == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14]
    assert check_rows(llama_model, recorder, every=False) == 13
    coverage = health.coverage("r")
    assert (coverage.seen_tokens, coverage.dropped_tokens) == (15, {"not_captured": 2})
    assert health.counters()["blind.some_rows"] == 1


def test_steps_that_cannot_be_read_are_never_given_to_other_positions(
    llama_model: Any,
    tap: Build,
    recorder: Recorder,
    health: Health,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = GatheredSteps.take
    faults = [None, None, MemoryError(), None]

    def take(self: GatheredSteps) -> Any:
        found = original(self)
        if found is not None and (fault := faults.pop(0)) is not None:
            raise fault
        return found

    monkeypatch.setattr(GatheredSteps, "take", take)
    plain = llama_model.generate(torch.tensor([PROMPTS[0]]), **TWELVE)
    with tap(llama_model, gather_steps=2, gather_s=10.0), request_scope("r"):
        watched = llama_model.generate(torch.tensor([PROMPTS[0]]), **TWELVE)
    assert watched.equal(plain)
    assert recorder.positions("r") == list(range(8))
    assert check_rows(llama_model, recorder, every=False) == 8
    coverage = health.coverage("r")
    assert (coverage.seen_tokens, coverage.dropped_tokens) == (15, {"not_captured": 7})
    assert recorder.finished == ["r"]


@given(
    columns=st.lists(st.tuples(*[st.integers(EOS, 6)] * 3), min_size=1, max_size=12),
    seen=st.integers(0, 2**12 - 1),
    sizes=st.lists(st.integers(1, 5), min_size=12, max_size=12),
    first=st.one_of(st.none(), st.integers(0, 9)),
)
def test_any_gathering_learns_what_single_steps_would(
    columns: list[tuple[int, ...]], seen: int, sizes: list[int], first: int | None
) -> None:
    def sequences() -> Sequences:
        real = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1]], dtype=bool)
        return Sequences(np.full((3, 3), 9), real, 3, frozenset({EOS}), None)

    def learned(lots: list[list[int]]) -> tuple[list[Any], list[list[int]], list[int], list[int]]:
        """Rows with their vectors; tokens of each sequence; positions left out; and lost."""
        known = sequences()
        rows: list[Any] = []
        told: list[list[int]] = [[], [], []]
        excluded: list[int] = []
        lost: list[int] = []
        for lot in lots:
            gathered = GatheredSteps(99, 99.0)
            for step in lot:
                gathered.begin(torch.tensor(columns[step])[:, None])
                if seen >> step & 1:
                    gathered.keep(torch.tensor([[step, s] for s in range(3)]))
            steps = gathered.take()
            assert steps is not None
            found = learn_steps(steps, known, first)
            for row in found.rows:
                assert steps.vectors is not None
                rows.append((*row[:3], *steps.vectors[row.at].tolist()))
            for sequence, tokens in enumerate(found.told):
                told[sequence] += tokens
            excluded += found.excluded
            lost += found.lost
        assert known.next_column == known.known_columns == 3 + len(columns)
        return sorted(rows), told, sorted(excluded), sorted(lost)

    each = list(range(len(columns)))
    ends = np.cumsum(sizes)[np.cumsum(sizes) < len(columns)]
    lots = [part.tolist() for part in np.split(np.array(each), ends)]
    together, alone = learned(lots), learned([[step] for step in each])
    assert together == alone
    for sequence, _, token, step, column in together[0]:
        assert columns[step][sequence] == token
        assert column == sequence


def test_token_ids_leave_the_device_before_their_pass_and_are_read_once_it_is_over() -> None:
    class Copy:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.content, self.on_host = tensor.clone(), torch.full_like(tensor, -1)

        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            self.on_host.copy_(self.content)

    copies: list[Copy] = []

    def copier(tensor: torch.Tensor) -> HostCopy:
        copies.append(Copy(tensor))
        return HostCopy(copies[-1].on_host, copies[-1])

    gathered = GatheredSteps(limit_steps=2, limit_s=10.0, copier=copier)
    for step in (1, 2):
        ids = torch.tensor([[step], [10 * step]])
        gathered.begin(ids)
        ids.zero_()
        assert len(copies) == step
        assert (copies[-1].on_host == -1).all()  # nobody waited
        gathered.keep(torch.ones(2, 4))
    steps = gathered.take()
    assert steps is not None
    assert steps.token_ids == [[1, 10], [2, 20]]
