from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nae_monitor.errors import ModelError
from nae_monitor.models import Encoder, load_encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("embedded/all-minilm-l6-v2")


@pytest.mark.live
def test_vectors_are_float32_of_length_one(encoder: Encoder) -> None:
    rows = encoder.encode(["a cat", "the tax law of Norway", ""])
    assert rows.dtype == np.float32
    assert rows.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


@pytest.mark.live
def test_a_text_has_the_same_vector_in_any_batch(encoder: Encoder) -> None:
    alone = encoder.encode(["a cat sat"])[0]
    together = encoder.encode(["x", "a cat sat", "a much longer sentence than the others are"])[1]
    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.mark.live
def test_near_meanings_are_nearer(encoder: Encoder) -> None:
    cat, kitten, law = encoder.encode(["a cat", "a kitten", "tax law"])
    assert cat @ kitten > cat @ law + 0.3


@pytest.mark.live
def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.live
def test_it_names_itself_and_its_weights(encoder: Encoder) -> None:
    assert encoder.name == "embedded/all-minilm-l6-v2"
    assert len(encoder.fingerprint) == 64


def test_a_missing_directory_lists_the_embedded_ones() -> None:
    with pytest.raises(ModelError, match="embedded/all-minilm-l6-v2"):
        load_encoder("./nowhere")


def test_a_directory_that_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_encoder(str(tmp_path))


def test_importing_the_package_loads_no_heavy_library() -> None:
    script = (
        "import sys, nae_monitor.models; "
        "print([m for m in ('transformers', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
