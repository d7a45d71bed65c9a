"""The benchmark of the report: what its run holds, and what its claims stand on."""

from __future__ import annotations

import math
from pathlib import Path

from report import Size, claims_of, sizes_of, write_run

from nae_monitor.recording import Recording


def test_the_run_holds_the_tokens_it_is_named_after(tmp_path: Path) -> None:
    for size in (Size("many", 1024, 128), Size("one", 1024, 1024)):
        write_run(tmp_path / size.name, size)
        recording = Recording.open(tmp_path / size.name)
        records = list(recording.requests())
        assert sum(r.prompt_tokens + r.output_tokens for r in records) == 1024
        assert len(records) == 1024 // size.conversation_tokens
        assert all(row.decoding and row.activation.scores for row in recording.activations())
        assert any(True for _ in recording.findings())


def test_bounds_stand_on_the_largest_pages_and_hold_for_nothing_unmeasured() -> None:
    sizes = sizes_of(10_000)
    file_bytes = {size.name: 100 * size.tokens for size in sizes}
    written_s = {size.name: 1.0 for size in sizes}
    blind = claims_of(sizes, {}, file_bytes, written_s)
    assert {c.holds for c in blind if c.name.startswith(("open", "search", "colour"))} == {None}
    slow = claims_of(sizes, {(sizes[2].name, "open"): [2.5] * 3}, file_bytes, written_s)
    assert [c.name for c in slow if c.holds is False] == ["open, 10,000 tokens"]
    assert {c.name for c in slow if c.bound and "file" in c.name} == {
        "file, 10,000 tokens",
        "file, 10,000 tokens in one",
    }
    assert not any(math.isnan(c.value) for c in slow if c.name.startswith(("file", "written")))
