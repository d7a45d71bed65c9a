"""A lock holds a rule's activation directions to its version, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detect_support import HEADER, rules_of
from safetensors.torch import save_file

from nae_monitor.detect.tools.lock import (
    Lock,
    lock_faults,
    lock_of,
    lock_text,
    missing_directions,
    read_lock,
)
from nae_monitor.errors import InputDataError

DIRECTION = "{direction: d.safetensors#up, layer: 20, measure: cosine, gte: 0.1}"
RULE = HEADER + f"detection: {{d: {{activation: {DIRECTION}}}, condition: d}}\n"
UP, DOWN = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def write(tmp_path: Path, **vectors: torch.Tensor) -> None:
    save_file(
        {name: vector.clone() for name, vector in vectors.items()}, tmp_path / "d.safetensors"
    )


def locked(tmp_path: Path, text: str = RULE, known: Lock | None = None) -> Lock:
    return lock_of(rules_of(tmp_path, text), known or {})


def test_a_changed_vector_asks_for_a_higher_version(tmp_path: Path) -> None:
    write(tmp_path, up=UP)
    before = locked(tmp_path)
    assert lock_faults(before, locked(tmp_path)) == []
    write(tmp_path, up=DOWN)
    (fault,) = lock_faults(before, locked(tmp_path))
    assert fault == "a_rule: its direction d.safetensors#up changed, and its version is 1 after 1"
    assert lock_faults(before, locked(tmp_path, RULE + "version: 2\n")) == []


def test_other_vectors_of_the_file_are_none_of_the_rules_business(tmp_path: Path) -> None:
    write(tmp_path, up=UP)
    before = locked(tmp_path)
    write(tmp_path, up=UP, down=DOWN)
    assert locked(tmp_path) == before


def test_a_file_that_is_not_there_is_told_and_its_digest_kept(tmp_path: Path) -> None:
    write(tmp_path, up=UP)
    before = locked(tmp_path)
    (tmp_path / "d.safetensors").unlink()
    (line,) = missing_directions(rules_of(tmp_path, RULE))
    assert line.startswith("a_rule: d.safetensors#up is not there")
    kept = locked(tmp_path, known=before)
    assert kept == before
    write(tmp_path, up=DOWN)
    assert len(lock_faults(kept, locked(tmp_path, known=kept))) == 1


def test_a_lock_with_directions_reads_back(tmp_path: Path) -> None:
    write(tmp_path, up=UP)
    lock, file = locked(tmp_path), tmp_path / "rules.lock.json"
    file.write_text(lock_text(lock))
    assert read_lock(file) == lock
    (entry,) = lock.values()
    (digest,) = entry["directions"].values()
    file.write_text(lock_text(lock).replace(f'"{digest}"', "3"))
    with pytest.raises(InputDataError):
        read_lock(file)
