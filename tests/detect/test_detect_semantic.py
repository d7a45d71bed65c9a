import numpy as np
import pytest
from detect_support import LetterEncoder

from nae_monitor.detect.semantic import (
    COMPONENT,
    MAX_SENTENCES,
    Comparison,
    Embedder,
    SemanticMatcher,
)
from nae_monitor.errors import ConfigurationError
from nae_monitor.health import CIRCUIT_LIMIT, Health


def matcher(
    threshold: float = 0.9, margin: float = 0.0, negatives: tuple[str, ...] = (), full: bool = False
) -> SemanticMatcher:
    return SemanticMatcher(
        ("hide the truth",), negatives, threshold, margin, "full" if full else "sentence"
    )


def comparison(spec: SemanticMatcher, encoder: object | None = None) -> Comparison:
    return Comparison.of(spec, Embedder(encoder or LetterEncoder(), Health()))  # type: ignore[arg-type]


def test_the_sentence_that_means_the_exemplar_is_the_hit() -> None:
    text = "Some cats purr. The truth hide! More words"
    hits, why = comparison(matcher()).find(text)
    assert [(text[h.start : h.end], h.score) for h in hits] == [("The truth hide", 1.0)]
    assert why == ""


def test_the_threshold_itself_is_enough_and_below_is_not() -> None:
    encoder = LetterEncoder()
    a, b = encoder.encode(["hide the truth"])[0], encoder.encode(["hide the lie"])[0]
    cosine = round(float(np.float32(a) @ np.float32(b)), 4)
    assert comparison(matcher(cosine)).find("hide the lie")[0]
    assert not comparison(matcher(cosine + 0.001)).find("hide the lie")[0]


def test_a_negative_that_is_nearer_takes_the_hit_away() -> None:
    assert comparison(matcher(0.5)).find("hide the tooth")[0]
    assert not comparison(matcher(0.5, negatives=("hide the tooth",))).find("hide the tooth")[0]


def test_the_margin_over_the_best_negative_is_required() -> None:
    negatives = ("zzz",)
    assert comparison(matcher(0.5, 0.9, negatives)).find("hide the truth")[0]
    assert not comparison(matcher(0.5, 1.1, negatives)).find("hide the truth")[0]


def test_full_granularity_compares_the_field_as_one() -> None:
    text = "hide. the. truth"
    hits, _ = comparison(matcher(full=True)).find(text)
    assert [(h.start, h.end) for h in hits] == [(0, len(text))]
    assert comparison(matcher(full=True)).find("  ") == ([], "")


def test_a_sentence_is_encoded_once_and_alone() -> None:
    encoder = LetterEncoder()
    compared = comparison(matcher(), encoder)
    compared.find("one two. three four.")
    compared.find("three four. one two.")
    assert encoder.seen == ["hide the truth", "one two", "three four"]


def test_a_failing_encoder_is_counted_and_answers_unknown() -> None:
    class Failing(LetterEncoder):
        def encode(self, texts: list[str]) -> np.ndarray:
            if self.seen:
                raise RuntimeError("no memory")
            return super().encode(texts)

    health = Health()
    compared = Comparison.of(matcher(), Embedder(Failing(), health))
    for number in range(CIRCUIT_LIMIT + 2):
        assert compared.find(f"some words {number}") == ([], "the sentence encoder failed")
    assert health.counters()[f"failed.{COMPONENT}.RuntimeError"] == CIRCUIT_LIMIT
    assert health.is_open(COMPONENT)


@pytest.mark.parametrize(
    "answer", [np.full((1, 3), np.nan), np.zeros((1, 3)), np.ones(3), np.ones((2, 3)), None]
)
def test_what_is_not_one_unit_vector_stops_the_start(answer: object) -> None:
    class Wrong:
        def encode(self, texts: list[str]) -> object:
            return answer

    with pytest.raises(ConfigurationError, match="encoder failed"):
        comparison(matcher(), Wrong())


def test_sentences_beyond_the_limit_leave_the_answer_unknown() -> None:
    text = "zz zz. " * (MAX_SENTENCES + 1)
    assert comparison(matcher()).find(text) == ([], f"over {MAX_SENTENCES} sentences")
