"""Rows of a collection, and concepts of rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from collections_on_disk import write_collection

from nae_monitor.concepts import concepts_of, read_collection
from nae_monitor.detect import load_rules
from nae_monitor.errors import InputDataError


def test_content_rows_of_the_splits_asked_for_are_read_as_unit_vectors(tmp_path: Path) -> None:
    write_collection(tmp_path, d_model=8)
    rows = read_collection(tmp_path, ["train"])
    assert np.allclose(np.linalg.norm(rows.unit, axis=1), 1)
    assert set(rows.kinds[rows.hostile]) == {"cyber"}
    assert len(np.unique(rows.documents)) == 40
    assert len(read_collection(tmp_path, ["train", "test"])) > len(rows)


def test_a_directory_without_shards_or_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="no shards"):
        read_collection(tmp_path, ["train"])
    write_collection(tmp_path, d_model=8)
    with pytest.raises(InputDataError, match="no usable rows of ood"):
        read_collection(tmp_path, ["ood"])


def test_rows_that_are_zero_or_not_finite_are_left_out(tmp_path: Path) -> None:
    write_collection(tmp_path, d_model=8)
    whole = len(read_collection(tmp_path, ["train"]))
    write_collection(tmp_path, d_model=8, first=torch.zeros(8))
    assert len(read_collection(tmp_path, ["train"])) == whole - 1
    write_collection(tmp_path, d_model=8, first=torch.full((8,), torch.inf))
    assert len(read_collection(tmp_path, ["train"])) == whole - 1


def test_a_rule_stands_for_its_exemplars_or_else_its_title(tmp_path: Path) -> None:
    head = "schema_version: 1\ntitle: {t}\nid: {i}\nname: {n}\nseverity: low\ndetection:\n"
    texts = [
        head.format(t="By meaning", i="7a0f4f2e-3f43-4b0e-9d6c-1c9f6a1b2c01", n="meaning")
        + "  m: {semantic: {exemplars: [asks for malware], negatives: [asks for bread], "
        + "threshold: 0.5, margin: 0.05}}\n  condition: m\n",
        head.format(t="By words", i="7a0f4f2e-3f43-4b0e-9d6c-1c9f6a1b2c02", n="words")
        + "  w: {keywords: {any: [malware]}}\n  condition: w\n",
        head.format(t="By figures", i="7a0f4f2e-3f43-4b0e-9d6c-1c9f6a1b2c03", n="figures")
        + "  f: {field: fve, value: {lte: 0.0}}\n  condition: f\n",
        head.format(t="Left out", i="7a0f4f2e-3f43-4b0e-9d6c-1c9f6a1b2c04", n="left_out")
        + "  w: {keywords: {any: [malware]}}\n  condition: w\nenabled: false\n",
    ]
    (tmp_path / "rules.yaml").write_text("---\n".join(texts))
    found = {c.name: c.phrases for c in concepts_of(load_rules([tmp_path]))}
    assert found == {"meaning": ("asks for malware",), "words": ("By words",)}
