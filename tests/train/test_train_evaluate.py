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
from tiny_trainer import WordEncoder, make_examples

from nae_monitor.decode import FidelityReference
from nae_monitor.errors import InputDataError
from nae_monitor.records import Decoding
from nae_monitor.train import av
from nae_monitor.train.dataset import Examples
from nae_monitor.train.evaluate import Pair, evaluate, last_named
from nae_monitor.train.intervals import Clusters, Measure
from nae_monitor.train.targets import Target
from nae_monitor.train.theme_choice import theme_in
from nae_monitor.train.themes import UNCLEAR

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
    """Text or theme "row 3" -> row 3; "nan" -> NaN; any other text -> one fixed direction."""

    vectors: torch.Tensor
    fixed: torch.Tensor

    def reconstruct(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> torch.Tensor:
        if text == "nan":
            return torch.full_like(self.fixed, torch.nan)
        said = theme_in(text) or text
        return self.vectors[int(said[4:])] * 3 if said.startswith("row ") else self.fixed


def measured(
    model: Any, say: Callable[[int], str], rows: int = ROWS, examples: Examples | None = None
) -> dict[str, Measure]:
    examples = (examples or make_examples(ROWS, 5)).select(list(range(rows)))
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
    return {m.name: m for m in evaluate(pair, examples, WordEncoder()).measures}


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


def test_a_pair_that_speaks_by_its_themes_alone_loses_all_with_another_rows_theme(
    model: Any,
) -> None:
    found = measured(model, lambda i: f'at "a"; expects "b"; row {i}; prompt "a')
    assert found["round-trip FVE"].value == pytest.approx(1, abs=1e-5)
    swapped = found["AR with another row's theme, FVE"]
    assert swapped == dataclasses.replace(
        found["AR on another row's text, FVE"], name="AR with another row's theme, FVE"
    )
    assert swapped.value < 0


def test_a_pair_without_themes_loses_nothing_with_another_rows_theme(model: Any) -> None:
    found = measured(model, lambda i: f"row {i}")
    assert found["AR with another row's theme, FVE"].value == found["round-trip FVE"].value


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
    assert len(with_intervals) == 16
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
        ('at " kite"; expects " flies"; small talk; prompt "the red', 1.0),
        ('at " kite"; expects "', 1.0),
        ('at "kite"; expects " flies"; small talk; prompt "the red', 0.0),
        ('at " kites"; expects " fly"; small talk; prompt "the red', 0.0),
        ('at " kite', 0.0),
        (" kite", 0.0),
        ("", 0.0),
    ],
)
def test_the_token_is_named_where_the_text_begins_with_exactly_it(text: str, named: float) -> None:
    target = Target("smalltalk", "small talk", "prompt", "see the red kite", " flies", " kite")
    assert last_named([target], [text]).tolist() == [named]


def test_a_token_without_visible_text_is_never_counted_as_named() -> None:
    target = Target("smalltalk", "small talk", "prompt", "see the", " fly", "")
    assert last_named([target], ['at ""; expects " fly"']).tolist() == [0.0]


def partly_unclear(unclear: Callable[[int], bool]) -> Examples:
    """Rows of which some have the target of a message that nobody can tell yet."""
    examples = make_examples(ROWS, 5)
    targets = tuple(
        dataclasses.replace(t, kind="", theme=UNCLEAR) if unclear(i) else t
        for i, t in enumerate(examples.targets)
    )
    return dataclasses.replace(examples, targets=targets)


def test_a_verbalizer_that_writes_the_targets_is_as_right_as_they_are(model: Any) -> None:
    examples = partly_unclear(lambda i: i % 4 == 0)
    found = measured(model, lambda i: examples.targets[i].text, examples=examples)
    right, best = found["theme's kind right, of 20"], found["the same of target themes"]
    assert (right.value, right.low, right.high) == (best.value, best.low, best.high)
    assert right.value == 1  # the encoder tells these themes apart
    assert found["unclear said, topic clear"].value == 0
    assert found["unclear said, topic unclear"].value == 1
    assert found["last token named"].value == 1


def test_themes_are_measured_where_a_reader_could_tell_the_kind(model: Any) -> None:
    """Of 24 rows 6 are unclear and do not count; every third of the rest is small talk."""
    examples = partly_unclear(lambda i: i % 4 == 0)
    found = measured(
        model, lambda i: f'at "{i}"; expects "x"; small talk; prompt "', examples=examples
    )
    told = [t.kind for t in examples.targets if t.kind]
    assert len(told) == 18
    share = told.count("smalltalk") / 18
    assert found["theme's kind right, of 20"].value == pytest.approx(share)
    assert found["the same of target themes"].value == 1
    assert found["unclear said, topic unclear"].value == 0


def test_always_unclear_is_never_right_and_shows_as_such(model: Any) -> None:
    examples = partly_unclear(lambda i: i % 4 == 0)
    found = measured(
        model, lambda i: f'at "{i}"; expects "x"; {UNCLEAR}; prompt "a', examples=examples
    )
    assert found["theme's kind right, of 20"].value < 0.5
    assert found["unclear said, topic clear"].value == 1
    assert found["unclear said, topic unclear"].value == 1


def test_rows_without_any_clear_topic_have_the_same_lines(model: Any) -> None:
    """``nla evaluate`` sets the tables of two kinds of rows side by side, line by line."""
    some = measured(model, str, examples=partly_unclear(lambda i: i % 4 == 0))
    none = measured(model, str, examples=partly_unclear(lambda i: True))
    assert list(none) == list(some)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_rows_that_are_all_clear_are_measured_without_a_warning(model: Any) -> None:
    assert math.isnan(measured(model, str)["unclear said, topic unclear"].value)
