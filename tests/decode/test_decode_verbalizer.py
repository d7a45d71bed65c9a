from __future__ import annotations

from typing import Any

import pytest
import tiny_nla
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.decode import open_av
from nae_monitor.decode.engines import next_tokens
from nae_monitor.decode.engines.next_tokens import NEAR_TIE, NextTokens, Row
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.prompts import CLOSE_TAG, PromptBuilder, Sampling, parse_explanation
from nae_monitor.decode.verbalizer import Verbalizer, load_verbalizer, vector_seeds
from nae_monitor.decode.weights import embedding_rows, load_causal_lm
from nae_monitor.errors import VectorError
from nae_monitor.settings import NlaSettings

CPU = torch.device("cpu")
NEW_TOKENS = 24
_built: dict[tuple[str, str], Verbalizer] = {}


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(count, tiny_nla.D, generator=torch.Generator().manual_seed(seed))


def verbalizer(tiny: Any, form: str = "official") -> Verbalizer:
    key = (str(tiny.base), form)
    if key not in _built:
        checkpoint = open_av(getattr(tiny, form)[0], tiny.resolve)
        _built[key] = load_verbalizer(
            checkpoint, NlaSettings(batch_size=8), dtype=torch.float32, device=CPU
        )
    return _built[key]


def raw(v: Verbalizer, batch: torch.Tensor, **options: Any) -> list[str]:
    sampling = Sampling(NEW_TOKENS, **options)
    return [g.text for g in v._engine.generate(v._prompts.build(batch), sampling)]


def by_hugging_face(tiny: Any, batch: torch.Tensor) -> list[str]:
    """Inject by hand and let transformers generate, one vector at a time."""
    checkpoint = open_av(tiny.official[0], tiny.resolve)
    model = load_causal_lm(checkpoint.source, dtype=torch.float32, device=CPU)
    ids = torch.tensor([checkpoint.prompt_ids])
    texts = []
    for vector in batch:
        embeddings = model.get_input_embeddings()(ids).detach().clone()
        injected = vector / vector.norm() * tiny_nla.SCALE
        embeddings[0, checkpoint.marker_index] = injected
        written = model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            stop_strings=[CLOSE_TAG],
            tokenizer=checkpoint.tokenizer,
        )[0].tolist()
        if written[-1] == checkpoint.tokenizer.eos_token_id:
            written.pop()
        texts.append(checkpoint.tokenizer.decode(written))
    return texts


def test_greedy_texts_equal_hugging_face_generate(tiny: Any) -> None:
    batch = vectors(12)
    texts = raw(verbalizer(tiny), batch)
    assert texts == by_hugging_face(tiny, batch)
    assert len(set(texts)) > 6  # the vector is read


def test_texts_end_at_the_closing_tag_or_the_limit(llama: Any) -> None:
    found = verbalizer(llama).decode(vectors(24), max_new_tokens=NEW_TOKENS)
    closed = [d for d in found if d.closed]
    assert 2 <= len(closed) < 24
    assert all(CLOSE_TAG not in d.text for d in found)
    assert max(d.tokens for d in found) <= NEW_TOKENS
    assert any(d.tokens == NEW_TOKENS and not d.closed and d.text for d in found)


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(range(8)), size=st.integers(2, 8))
def test_a_greedy_text_is_the_same_whatever_the_batch(
    tiny: Any, order: list[int], size: int
) -> None:
    v = verbalizer(tiny)
    batch = vectors(8, seed=3)
    alone = [raw(v, row[None])[0] for row in batch[order[:size]]]
    engine = v._engine
    assert isinstance(engine, TorchEngine)
    for batch_size in (1, 3, 8):
        engine._batch_size = batch_size
        assert raw(v, batch[order[:size]]) == alone
    engine._batch_size = 8


def test_near_ties_are_settled_by_the_row_alone(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every decision called a tie, texts stay those of single uncached passes."""
    v = verbalizer(llama)
    batch = vectors(5, seed=4)
    plain = raw(v, batch)
    asked = []
    alone = NextTokens._score_alone

    def counted(self: NextTokens, row: Row) -> torch.Tensor:
        asked.append(row.index)
        return alone(self, row)

    monkeypatch.setattr(next_tokens, "NEAR_TIE", 1e9)
    monkeypatch.setattr(NextTokens, "_score_alone", counted)
    assert raw(v, batch) == plain
    assert set(asked) == set(range(5))


def test_noise_between_batch_shapes_stays_far_below_a_near_tie(tiny: Any) -> None:
    v = verbalizer(tiny)
    engine = v._engine
    assert isinstance(engine, TorchEngine)
    prompts = v._prompts.build(vectors(8, seed=9))
    model = engine._model
    with torch.inference_mode():
        together = model(inputs_embeds=prompts.embeddings).logits[:, -1]
        for i in range(8):
            alone = model(inputs_embeds=prompts.embeddings[i : i + 1]).logits[0, -1]
            assert (together[i] - alone).abs().max() < NEAR_TIE * alone.abs().max() / 4


def test_the_adapter_form_reads_its_own_weights(tiny: Any) -> None:
    batch = vectors(6)
    merged, plain = raw(verbalizer(tiny, "adapter"), batch), raw(verbalizer(tiny), batch)
    assert merged != plain


def test_samples_depend_on_the_seed_and_not_on_the_batch(llama: Any) -> None:
    v = verbalizer(llama)
    batch = vectors(6, seed=5)
    seeds = (11, 12, 13, 14, 15, 16)
    together = raw(v, batch, temperature=1.0, seeds=seeds)
    alone = [raw(v, batch[i : i + 1], temperature=1.0, seeds=seeds[i : i + 1])[0] for i in range(6)]
    assert together == alone
    assert together != raw(v, batch, temperature=1.0, seeds=(1, 2, 3, 4, 5, 6))


def test_samples_without_seeds_are_seeded_by_the_vector(llama: Any) -> None:
    v = verbalizer(llama)
    batch = vectors(4, seed=6)
    forward = [d.text for d in v.decode(batch, temperature=1.0)]
    backward = [d.text for d in v.decode(batch.flip(0), temperature=1.0)]
    assert forward == backward[::-1]


def test_vector_seeds_differ_by_row_and_by_seed() -> None:
    batch = vectors(50)
    seeds = vector_seeds(batch, 1)
    assert len(set(seeds) | set(vector_seeds(batch, 2))) == 100
    assert seeds[7:8] == vector_seeds(batch[7:8].clone(), 1)


def test_gumbel_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, -1)
    rows = [Row(i, logits[0], torch.Generator().manual_seed(i)) for i in range(4000)]
    drawn = (logits + next_tokens._noise(rows, logits)).argmax(1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, torch.softmax(logits[0], 0), atol=0.03)


def test_a_wrong_number_of_seeds_is_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="seeds"):
        verbalizer(llama).decode(vectors(2), temperature=1.0, seeds=[1])


def test_an_empty_batch_gives_nothing(llama: Any) -> None:
    assert verbalizer(llama).decode(torch.empty(0, tiny_nla.D)) == []


def test_an_unfit_vector_is_refused_and_not_decoded(llama: Any) -> None:
    batch = vectors(3)
    batch[1] = 0
    with pytest.raises(VectorError, match="row 1"):
        verbalizer(llama).decode(batch)


def test_half_precision_activations_are_taken(llama: Any) -> None:
    batch = vectors(3)
    half = [d.text for d in verbalizer(llama).decode(batch.half())]
    assert half == [d.text for d in verbalizer(llama).decode(batch.half().float())]


def test_the_marker_row_holds_the_vector_at_the_injection_scale(tiny: Any) -> None:
    checkpoint = open_av(tiny.official[0], tiny.resolve)
    rows = embedding_rows(checkpoint.source, checkpoint.prompt_ids)
    batch = vectors(3)
    built = PromptBuilder(checkpoint, rows).build(batch)
    place = checkpoint.marker_index
    norms = built.embeddings[:, place].norm(dim=1)
    assert torch.allclose(norms, torch.full((3,), tiny_nla.SCALE))
    cosines = torch.nn.functional.cosine_similarity(built.embeddings[:, place], batch)
    assert torch.allclose(cosines, torch.ones(3))
    others = [i for i in range(len(checkpoint.prompt_ids)) if i != place]
    assert torch.equal(built.embeddings[1][others], rows[others])
    assert built.shared_tokens == place


def test_embedding_rows_are_what_the_model_feeds_its_first_block(tiny: Any) -> None:
    """Gemma multiplies token embeddings by sqrt(d); the vector must replace a row after that."""
    checkpoint = open_av(tiny.official[0], tiny.resolve)
    model = load_causal_lm(checkpoint.source, dtype=torch.float32, device=CPU)
    ids = torch.tensor([checkpoint.prompt_ids])
    fed = model(input_ids=ids, output_hidden_states=True).hidden_states[0][0]
    rows = embedding_rows(checkpoint.source, checkpoint.prompt_ids)
    assert torch.allclose(rows, fed, rtol=1e-6)
    assert (checkpoint.source.embedding_scale != 1.0) == (tiny.family == "gemma3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<explanation> a dog </explanation>", ("a dog", True)),
        ("<explanation>a dog", ("a dog", False)),
        ("a dog</explanation> more", ("a dog", True)),
        ("a dog", ("a dog", False)),
        ("so: <explanation>\na\nb\n</explanation>", ("a\nb", True)),
        ("", ("", False)),
    ],
)
def test_explanations_are_cut_out_and_a_missing_tag_is_marked(
    text: str, expected: tuple[str, bool]
) -> None:
    assert parse_explanation(text) == expected
