"""Rows of recordings, labelled by decodes and by people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recording_parts import prompt_row

from nae_monitor.concepts import read_recorded
from nae_monitor.concepts.recorded import ORDINARY, _bounded
from nae_monitor.concepts.rows import LabelledRows
from nae_monitor.errors import InputDataError
from nae_monitor.recording import RecordedActivation, Recording, RecordingWriter
from nae_monitor.records import Decoding, Finding, FindingState, Phase, Request, Severity

D = 8
DECODING = Decoding("a text", True, 0.5, 0.5, 1, 0, "pair", 3, 0.1)
# Of each request's rows: rules that matched, rules that could not decide, whether it was decoded.
ROWS: Sequence[tuple[tuple[str, ...], tuple[str, ...], bool]] = (
    ((), (), True),
    (("harm",), (), True),
    (("harm", "jailbreak"), (), True),
    ((), ("harm",), True),  # unknown
    ((), (), False),  # never read
    (("jailbreak",), ("harm",), True),
)


def finding(request: str, position: int, rule: str, state: FindingState) -> Finding:
    return Finding(request, position, rule, rule, "1", rule.title(), Severity.HIGH, state)


def recorded(path: Path, requests: int = 20, **manifest: object) -> Recording:
    stated = {"layer": 3, "model": "m", **manifest}
    with RecordingWriter(path, manifest=stated, d_model=D, content="none") as writer:
        for number in range(requests):
            name = f"r{number}"
            for position, (matched, undecided, is_decoded) in enumerate(ROWS):
                vector = torch.full((D,), 1.0 + number).index_fill(0, torch.tensor(position), -3.0)
                row = prompt_row(
                    vector, position, request=Request(name, name, "m"),
                    phase=Phase.PROMPT if position else Phase.COMPLETION,
                )  # fmt: skip
                writer.write_activation(row, DECODING if is_decoded else None)
                writer.write_findings(
                    [finding(name, position, rule, FindingState.MATCH) for rule in matched]
                    + [finding(name, position, r, FindingState.UNDECIDED) for r in undecided]
                )
    return Recording.open(path)


def places(rows: LabelledRows) -> list[tuple[int, str]]:
    assert rows.positions is not None
    return sorted(zip(rows.positions.tolist(), rows.kinds.tolist(), strict=True))


def test_rows_are_of_the_rules_that_matched_and_unknown_ones_are_left_out(tmp_path: Path) -> None:
    fit, held = read_recorded([recorded(tmp_path / "a")], model="m", layer=3, d_model=D)
    both = fit.and_also(held)
    assert set(places(both)) == {
        (0, ORDINARY), (1, "harm"), (2, "harm"), (2, "jailbreak"), (5, "jailbreak"),
    }  # fmt: skip
    assert len(both) == 20 * 5
    assert both.hostile.tolist() == [kind != ORDINARY for kind in both.kinds]
    assert both.is_prompt.tolist() == [position > 0 for position in both.positions]  # type: ignore[union-attr]
    assert np.allclose(np.linalg.norm(both.unit, axis=1), 1)
    assert all(len(set(both.kinds[both.documents == n])) == 1 for n in set(both.documents))


def test_what_people_called_false_is_ordinary_and_their_silence_changes_nothing(
    tmp_path: Path,
) -> None:
    recording = recorded(tmp_path / "a", requests=3)
    labels = {"r0": [], "r1": ["jailbreak"]}
    fit, held = read_recorded([recording], model="m", layer=3, d_model=D, labels=labels)
    kinds = [kind for _, kind in places(fit.and_also(held))]
    assert kinds.count("harm") == 2  # of r2 alone
    assert kinds.count("jailbreak") == 4  # of r1 and r2
    # r0: rows 0, 1, 2; r1: rows 0, 1; r2: row 0. Row 5 of r0 stays unknown: harm could not decide.
    assert kinds.count(ORDINARY) == 6


def test_no_request_is_both_learnt_on_and_chosen_on(tmp_path: Path) -> None:
    fit, held = read_recorded([recorded(tmp_path / "a")], model="m", layer=3, d_model=D)
    assert len(fit)
    assert len(held)
    seen = {tuple(row) for row in fit.unit.round(9).tolist()}
    assert not seen & {tuple(row) for row in held.unit.round(9).tolist()}


@pytest.mark.parametrize(
    "asked", [{"layer": 4}, {"model": "other"}, {"d_model": D + 1}], ids=["layer", "model", "width"]
)
def test_a_recording_of_something_else_is_refused(tmp_path: Path, asked: dict[str, object]) -> None:
    recording = recorded(tmp_path / "a", requests=2)
    wanted = {"model": "m", "layer": 3, "d_model": D, **asked}
    with pytest.raises(InputDataError, match=str(recording.path)):
        read_recorded([recording], **wanted)  # type: ignore[arg-type]


def test_embeddings_are_not_taken_for_rows_of_a_layer(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="layer 0"):
        read_recorded([recorded(tmp_path / "a", layer=0)], model="m", layer=3, d_model=D)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_documents_of_two_sets_stay_apart(first: list[int], second: list[int]) -> None:
    def rows(documents: list[int]) -> LabelledRows:
        n = len(documents)
        return LabelledRows(
            np.ones((n, 2)), np.array(sorted(documents), dtype=np.int64), np.full(n, "x"),
            np.zeros(n, dtype=bool), np.zeros(n, dtype=bool),
        )  # fmt: skip

    one, two = rows(first), rows(second)
    both = one.and_also(two)
    assert len(set(both.documents)) == len(set(first)) + len(set(second))
    assert len(both) == len(first) + len(second)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20))
def test_of_many_rows_some_of_each_sort_are_drawn_always_the_same(
    ordinary: int, hits: int, limit: int
) -> None:
    row = RecordedActivation(prompt_row(torch.ones(2)), DECODING)
    found = [(row, ORDINARY)] * ordinary + [(replace(row), f"rule {n}") for n in range(hits)]
    kept = [kind for _, kind in _bounded(iter(found), limit)]
    assert kept.count(ORDINARY) == min(ordinary, limit)
    assert len(kept) - kept.count(ORDINARY) == min(hits, limit)
    assert len({k for k in kept if k != ORDINARY}) == min(hits, limit)
    assert kept == [kind for _, kind in _bounded(iter(found), limit)]
