from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "train")]
torch.set_num_threads(1)

import tiny_trainer  # noqa: E402
from reporting.machine import Machine  # noqa: E402

from nae_monitor.train.conversations import CollectOptions  # noqa: E402
from nae_monitor.train.lora import LoraOptions  # noqa: E402
from nae_monitor.train.recipe import CorpusOptions, HalfOptions, Recipe  # noqa: E402
from nae_monitor.train.run import Run  # noqa: E402


class WordEncoder:
    """A sentence encoder that counts words by their hash."""

    name = "words"
    fingerprint = "words-1"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = np.full((len(texts), 64), 1e-3, dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[sum(word.encode()) % 64] += 1
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


@pytest.fixture(scope="session")
def encoder() -> WordEncoder:
    return WordEncoder()


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(
        cpu="test",
        cores=2,
        threads=1,
        capability="AVX2",
        native_bfloat16=False,
        ram_gib=8.0,
        gpu=None,
        python="3.11",
        torch="2",
        busy_elsewhere_cores=0.0,
        device="cpu",
        matrix_peak_gflop_per_s={"float32": 1e6, "bfloat16": 1e6},
    )


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_trainer.write_target(tmp_path_factory.mktemp("target") / "tiny")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_trainer.write_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def trained(
    target: Path, corpus: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Recipe]:
    """Verbalizer, reconstructor and recipe of a pair that has learnt next to nothing."""
    half = HalfOptions(steps=4, lora=LoraOptions(rank=4, alpha=8, batch_size=8, warmup_steps=2))
    recipe = Recipe(
        nla_id="tiny-l2",
        target=str(target),
        collect=CollectOptions(
            layer=tiny_trainer.K,
            prompt_tokens=24,
            reply_tokens=4,
            positions_per_document=2,
            batch_size=64,
        ),
        av=half,
        ar=half,
        corpus=CorpusOptions(validation_share=0.1, test_share=0.1),
        reference_vectors=256,
        read_rows=0,
    )
    directory = tmp_path_factory.mktemp("run")
    run = Run(recipe, directory, wheels=lambda: corpus)
    stages: Any = ("collect", "av", "ar", "export")
    for stage in stages:
        run.stage(stage)
    pair = directory / "pair"
    return pair / "tiny-l2-av", pair / "tiny-l2-ar", recipe
