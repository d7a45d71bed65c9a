"""What every tap must keep, as a check that a third party runs on its own adapter.

::

    faults = tap_contract(MyAdapter())
    assert not faults, faults
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from nae_monitor.records import Request, RowBatch

PROMPTS = ((7, 8, 9, 10), (20, 21), (30, 31, 32, 33, 34, 35, 36))


class Listener(Protocol):
    """What the adapter must call; as :class:`nae_monitor.capture.CaptureListener`."""

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        """A sequence begins."""

    def rows(self, batch: RowBatch) -> None:
        """Rows of one forward pass."""

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        """New completion tokens."""

    def request_finished(self, request_id: str) -> None:
        """A sequence is over."""


class Adapter(Protocol):
    """A serving stack with its tap, as the contract drives it. Capture every position."""

    def attach(self, listener: Listener) -> None:
        """From now on tell ``listener``."""

    def detach(self) -> None:
        """Tell nobody, and leave nothing on the stack."""

    def generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Greedy completions of prompts without padding; several prompts run at once."""
        ...

    def hidden_states(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The reference ``[n, d]`` of one sequence, by a plain pass of the same model."""
        ...


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which an adapter breaks the contract.

    ``name`` is one of: ``not_started``, ``wrong_prompt``, ``wrong_completion``, ``lost_row``,
    ``repeated_row``, ``wrong_position``, ``wrong_token``, ``wrong_vector``, ``row_after_end``,
    ``not_ended``, ``raises``, ``changes_output``, ``blocks``, ``left_behind``.
    """

    name: str
    detail: str


@dataclass(slots=True)
class _Heard:
    """A listener that keeps all it hears."""

    prompts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    completions: dict[str, list[int]] = field(default_factory=dict)
    placed: dict[str, list[tuple[int, int, torch.Tensor]]] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)  # what came for no open request
    calls: int = 0

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        self.calls += 1
        self.prompts[request.request_id] = prompt_token_ids
        self.completions[request.request_id] = []
        self.placed[request.request_id] = []

    def rows(self, batch: RowBatch) -> None:
        self.calls += 1
        for i, index in enumerate(batch.request_index):
            name = batch.requests[index].request_id
            if name not in self.placed or self.ended[name]:
                self.late[name] += 1
            else:
                vector = batch.vectors[i].detach().float().cpu()
                self.placed[name].append((batch.positions[i], batch.token_ids[i], vector))

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        self.calls += 1
        if request_id not in self.completions or self.ended[request_id]:
            self.late[request_id] += 1
        else:
            self.completions[request_id] += token_ids

    def request_finished(self, request_id: str) -> None:
        self.calls += 1
        self.ended[request_id] += 1


class _Raising(_Heard):
    """A listener whose every call fails."""

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        raise RuntimeError("contract: request_started")

    def rows(self, batch: RowBatch) -> None:
        raise RuntimeError("contract: rows")

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        raise RuntimeError("contract: tokens")

    def request_finished(self, request_id: str) -> None:
        raise RuntimeError("contract: request_finished")


def tap_contract(
    adapter: Adapter,
    *,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    tolerance: float = 2e-5,
    deadline_s: float = 60.0,
) -> list[Fault]:
    """Drive an adapter and list every fault; empty: it keeps the contract.

    Runs the prompts without a tap, with a listener that keeps everything, without one again, and
    with one that fails in every call. An adapter that blocks leaves a daemon thread behind.

    Args:
        adapter: detached.
        prompts: token ids; no two may share a prefix, as a prefix cache would keep rows away.
        tolerance: the largest difference of one coordinate from its reference; wider for half
            precision.
        deadline_s: a ``generate`` that takes longer blocks.
    """
    plain, faults = _run(adapter, None, prompts, deadline_s)
    if plain is None:
        return faults
    heard = _Heard()
    for listener in (heard, _Raising()):
        output, failed = _run(adapter, listener, prompts, deadline_s)
        faults += failed
        if any(fault.name == "blocks" for fault in failed):
            return faults
        if output is not None and output != plain:
            faults.append(Fault("changes_output", "other tokens with the tap than without"))
        if listener is heard and output is not None:
            faults += _judge(adapter, heard, prompts, output, tolerance)
            calls = heard.calls
            faults += _run(adapter, None, prompts, deadline_s)[1]
            if heard.calls != calls:
                faults.append(Fault("left_behind", "the listener was called after detach"))
    return faults


def _run(
    adapter: Adapter,
    listener: _Heard | None,
    prompts: Sequence[Sequence[int]],
    deadline_s: float,
) -> tuple[list[list[int]] | None, list[Fault]]:
    """What ``generate`` returned, None where it did not, and what was wrong about that."""
    outputs: list[list[list[int]]] = []
    errors: list[str] = []

    def generate() -> None:
        try:
            if listener is not None:
                adapter.attach(listener)
            try:
                outputs.append(adapter.generate(prompts))
            finally:
                if listener is not None:
                    adapter.detach()
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises is its fault
            errors.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=generate, daemon=True, name="tap-contract")
    thread.start()
    thread.join(deadline_s)
    when = {True: "without a listener", False: "with a listener"}[listener is None]
    if isinstance(listener, _Raising):
        when = "with a listener that fails"
    if thread.is_alive():
        return None, [Fault("blocks", f"generate {when} took more than {deadline_s} s")]
    faults = [Fault("raises", f"generate {when}: {error}") for error in errors]
    return (outputs[0] if outputs else None), faults


def _judge(
    adapter: Adapter,
    heard: _Heard,
    prompts: Sequence[Sequence[int]],
    output: Sequence[Sequence[int]],
    tolerance: float,
) -> list[Fault]:
    faults = [Fault("row_after_end", f"{name}: {n} calls") for name, n in heard.late.items()]
    expected = Counter((*p, -1, *c) for p, c in zip(map(tuple, prompts), output, strict=True))
    told = Counter((*heard.prompts[n], -1, *heard.completions[n]) for n in heard.prompts)
    if len(heard.prompts) < len(prompts):
        faults.append(Fault("not_started", f"{len(heard.prompts)} of {len(prompts)} requests"))
    elif Counter(heard.prompts.values()) != Counter(map(tuple, prompts)):
        faults.append(Fault("wrong_prompt", "other prompts were announced than were given"))
    elif told != expected:
        faults.append(Fault("wrong_completion", "other tokens were told than were returned"))
    for name in heard.prompts:
        if heard.ended[name] != 1:
            faults.append(Fault("not_ended", f"{name}: ended {heard.ended[name]} times"))
        sequence = [*heard.prompts[name], *heard.completions[name]]
        faults += _judge_rows(adapter, name, heard.placed[name], sequence, tolerance)
    return faults


def _judge_rows(
    adapter: Adapter,
    name: str,
    placed: Sequence[tuple[int, int, torch.Tensor]],
    sequence: Sequence[int],
    tolerance: float,
) -> list[Fault]:
    faults = []
    counts = Counter(position for position, _, _ in placed)
    lost = [p for p in range(len(sequence) - 1) if not counts[p]]  # the last is not fed again
    if lost:
        faults.append(Fault("lost_row", f"{name}: no row at positions {lost[:8]}"))
    repeated = sorted(position for position, count in counts.items() if count > 1)
    if repeated:
        faults.append(Fault("repeated_row", f"{name}: several rows at positions {repeated[:8]}"))
    expected = adapter.hidden_states(sequence).float().cpu()
    for position, token, vector in placed:
        if not 0 <= position < len(sequence):
            faults.append(Fault("wrong_position", f"{name}: a row at position {position}"))
            continue
        if token != sequence[position]:
            faults.append(Fault("wrong_token", f"{name}: another token at position {position}"))
        distances = (expected - vector).abs().amax(dim=-1)
        if not float(distances[position]) <= tolerance:
            nearest = int(distances.argmin())
            if float(distances[nearest]) <= tolerance:
                detail = f"{name}: the row of position {nearest} was told as {position}"
                faults.append(Fault("wrong_position", detail))
            else:
                detail = f"{name}: position {position} differs by {float(distances[position]):.2g}"
                faults.append(Fault("wrong_vector", detail))
    return faults
