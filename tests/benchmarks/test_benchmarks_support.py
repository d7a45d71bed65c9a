"""Texts that are drawn in parts, and what is told of estimates."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confabulation.drawn import Drawn, draw
from confabulation.figures import BINS, ece, fifths
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.train.corpus import TrainingDocument

NOBODY: Any = None  # no model is asked for what the file holds, or behind the time


def of(document: TrainingDocument) -> Drawn:
    return Drawn(
        document.digest, "test", "kind", "a", "b", "b", "a", "text", ("s",), ("n",),
        0.5, 0.1, 0.2, 0.2, 0.01,
    )  # fmt: skip


def test_a_run_whose_time_is_over_gives_what_is_drawn_and_keeps_it(tmp_path: Path) -> None:
    documents = [TrainingDocument(f"text {number}", "tests", "facts") for number in range(20)]
    known = [of(document) for document in documents[:3]]
    path = tmp_path / "drawn.jsonl"
    torn = '{"digest": "torn'
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in known) + torn)
    told: list[tuple[str, int, int]] = []
    found = draw(
        NOBODY, NOBODY, NOBODY, [(d, "test") for d in documents], NOBODY, path,
        seed=0, progress=lambda *step: told.append(step), until_s=-math.inf,
    )  # fmt: skip
    assert found == known
    assert told == [("texts", 3, 20)]
    assert len(path.read_text().splitlines()) == 3


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_the_fifths_are_the_bins_of_the_calibration_error(pairs: list[tuple[float, bool]]) -> None:
    estimates = np.array([estimate for estimate, _ in pairs])
    untrue = np.array([outcome for _, outcome in pairs])
    shares = fifths(estimates, untrue)
    sizes = [len(part) for part in np.array_split(estimates, min(BINS, len(estimates)))]
    gaps = [abs(said - was) * n for (said, was), n in zip(shares, sizes, strict=True)]
    assert sum(gaps) / len(pairs) == pytest.approx(ece(estimates, untrue))
    assert (np.diff([said for said, _ in shares]) >= -1e-12).all()
