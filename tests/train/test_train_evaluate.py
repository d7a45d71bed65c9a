from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_trainer
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_trainer import make_examples

from nae_monitor.decode import FidelityReference
from nae_monitor.errors import InputDataError
from nae_monitor.records import Decoding
from nae_monitor.train import av
from nae_monitor.train.evaluate import Pair, evaluate, last_named, theme_right
from nae_monitor.train.intervals import Clusters, Measure
from nae_monitor.train.targets import Target

ROWS = 24


@dataclasses.dataclass
class Teller:
    """A verbalizer that says what it is told to of the rows it is given, in their order."""

    say: Callable[[int], str]
    told: int = 0

    def decode(self, vectors: torch.Tensor) -> list[Decoding]:
        first, self.told = self.told, self.told + len(vectors)
        return [
            Decoding(self.say(i), i % 2 == 0, None, None, None, 0, "stub", 4, 0.0)
            for i in range(first, self.told)
        ]


@dataclasses.dataclass
class Rebuilder:
    """Text "row 3" -> row 3; "nan" -> NaN; any other text -> one fixed direction."""

    vectors: torch.Tensor
    fixed: torch.Tensor

    def reconstruct(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> torch.Tensor:
        if text == "nan":
            return torch.full_like(self.fixed, torch.nan)
        return self.vectors[int(text[4:])] * 3 if text.startswith("row ") else self.fixed


def measured(model: Any, say: Callable[[int], str], rows: int = ROWS) -> dict[str, Measure]:
    examples = make_examples(ROWS, 5).select(list(range(rows)))
    tokenizer = tiny_trainer.build_tokenizer()
    tokenizer.chat_template = av.AV_CHAT_TEMPLATE
    prompt = av.av_prompt(tokenizer, 5.0)
    unit = torch.nn.functional.normalize(examples.vectors, dim=-1)
    mean = unit.mean(0)
    reference = FidelityReference(mean, float((unit - mean).square().sum(-1).mean()), None)
    checkpoint = SimpleNamespace(
        prompt_ids=prompt.token_ids,
        marker_index=prompt.marker,
        contract=SimpleNamespace(injection_scale=5.0),
        tokenizer=tokenizer,
    )
    pair = Pair(
        model,
        checkpoint,  # type: ignore[arg-type]
        Teller(say),  # type: ignore[arg-type]
        Rebuilder(examples.vectors, mean),  # type: ignore[arg-type]
        reference,
        {},
    )
    return {m.name: m for m in evaluate(pair, examples).measures}


def test_a_perfect_pair_has_fve_one_and_finds_every_vector(model: Any) -> None:
    found = measured(model, lambda i: f"row {i}")
    for name in ("round-trip FVE", "round-trip cosine", f"retrieval among {ROWS}, top 1"):
        measure = found[name]
        assert [measure.value, measure.low, measure.high] == pytest.approx([1, 1, 1], abs=1e-5)
    assert found["unique texts per 100"].value == 100
    assert found["AR on another row's text, FVE"].value < 0
    assert found["closing tag written"].value == 0.5
    assert found["tokens per explanation"].value == 4


def test_a_constant_text_explains_nothing_and_retrieves_one_in_n(model: Any) -> None:
    found = measured(model, lambda i: "always this")
    assert found["round-trip FVE"].value <= 0
    assert found["round-trip FVE"].value == found["AR on empty text, FVE"].value
    assert found["round-trip FVE"].value == found["AR on another row's text, FVE"].value
    assert found[f"retrieval among {ROWS}, top 1"].value == pytest.approx(1 / ROWS)
    assert found["unique texts per 100"].value == pytest.approx(100 / ROWS)
    # without a mean for a token the baseline is m itself, whose FVE is 0 by definition
    assert found["same-last-token mean, FVE"].value == pytest.approx(0, abs=1e-6)


def test_a_text_that_cannot_be_reconstructed_counts_as_a_miss_not_as_unknown(model: Any) -> None:
    found = measured(model, lambda i: "nan" if i == 0 else f"row {i}")
    assert math.isfinite(found["round-trip FVE"].value)
    assert found["round-trip FVE"].value < 1
    assert found["round-trip cosine"].value == pytest.approx(1 - 1 / ROWS, abs=1e-5)
    assert found[f"retrieval among {ROWS}, top 1"].value == pytest.approx(1 - 1 / ROWS)


def test_no_rows_at_all_is_one_clear_error(model: Any) -> None:
    with pytest.raises(InputDataError, match="no rows of that kind"):
        measured(model, str, rows=0)


def test_every_interval_contains_its_value(model: Any) -> None:
    found = measured(model, lambda i: f"row {i if i % 3 else (i + 1) % ROWS}")
    with_intervals = [m for m in found.values() if not math.isnan(m.low)]
    assert len(with_intervals) == 14
    for m in with_intervals:
        assert m.low - 1e-9 <= m.value <= m.high + 1e-9


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(2, 6))
def test_repeating_the_rows_of_a_document_does_not_narrow_an_interval(
    values: list[float], copies: int
) -> None:
    digests = [str(i) for i in range(len(values))]
    once = Clusters.by_document(digests, 0).mean("x", np.array(values))
    repeated = Clusters.by_document([d for d in digests for _ in range(copies)], 0).mean(
        "x", np.repeat(values, copies)
    )
    assert repeated.value == pytest.approx(once.value, abs=1e-9)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-9)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        level = rng.normal(size=40)  # what a document's rows share
        values = np.repeat(level, 5) + 0.1 * rng.normal(size=200)
        digests = [str(i // 5) for i in range(200)]
        measure = Clusters.by_document(digests, trial).mean("x", values)
        covered += measure.low <= 0 <= measure.high
    assert 0.88 < covered / 200 <= 1


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0.1, 4)), min_size=1, max_size=20))
def test_fve_is_one_minus_the_ratio_of_the_means(pairs: list[tuple[float, float]]) -> None:
    error, distance = (np.array(column) for column in zip(*pairs, strict=True))
    digests = [str(i // 2) for i in range(len(pairs))]
    found = Clusters.by_document(digests, 0).fve("x", error, distance)
    assert found.value == pytest.approx(1 - error.mean() / distance.mean(), abs=1e-9)
    assert found.low <= found.high


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('at " kite"; expects " flies"; after "the red"; ordinary chat', 1.0),
        ('at " kite"; expects "', 1.0),
        ('at "kite"; expects " flies"; after "the red"; ordinary chat', 0.0),
        ('at " kites"; expects " fly"; after "the red"; ordinary chat', 0.0),
        ('at " kite', 0.0),
        (" kite", 0.0),
        ("", 0.0),
    ],
)
def test_the_token_is_named_where_the_text_begins_with_exactly_it(text: str, named: float) -> None:
    target = Target("ordinary chat", "see the red", " fly", " kite")
    assert last_named([target], [text]).tolist() == [named]


def test_a_token_without_visible_text_is_never_counted_as_named() -> None:
    target = Target("ordinary chat", "see the", " fly", "")
    assert last_named([target], ['at ""; expects " fly"']).tolist() == [0.0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('at "a"; expects "b"; after "c"; ordinary chat, reply', 1.0),
        ('at "a"; expects "b"; after "c"; ordinary chat', 0.0),
        ("ordinary chat, reply", 1.0),
        ("", 0.0),
    ],
)
def test_the_theme_is_right_only_where_it_is_exactly_right(text: str, right: float) -> None:
    target = Target("ordinary chat, reply", "a", "b", "a")
    assert theme_right([target], [text]).tolist() == [right]
