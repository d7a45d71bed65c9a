"""The two benchmarks of recordings: their counts, and a small run of the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from recording_precision import claims_of
from replay_scale import ROWS_OF_REQUEST, replayed, write

from nae_monitor.recording import Recording
from nae_monitor.records import Decoding


def decoding(text: str, fve: float | None) -> Decoding:
    return Decoding(text, True, 0.9, fve, 1, 2, "nla", 1, 0.1)


def test_same_texts_and_lost_fve_are_counted_pair_by_pair() -> None:
    whole = [decoding(text, 0.5) for text in "abcd"]
    half = [decoding("a", 0.5), decoding("b", 0.4), decoding("x", 0.7), decoding("d", 0.5)]
    claims = {claim.name: claim.value for claim in claims_of(whole, half, ["m", "m", "n", "n"], 0)}
    assert claims["identical greedy texts, share"] == 0.75
    assert claims["FVE lost in float16, mean"] == pytest.approx(-0.025)
    assert claims["FVE change, mean of sizes"] == pytest.approx(0.075)


def test_the_long_replay_judges_every_row(tmp_path: Path) -> None:
    rows = 10 * ROWS_OF_REQUEST
    write(tmp_path / "live", rows)
    assert replayed(tmp_path / "live", tmp_path / "run")["rows"] == rows
    assert sum(1 for _ in Recording.open(tmp_path / "run").requests()) == 10
