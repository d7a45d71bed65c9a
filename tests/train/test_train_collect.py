from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_trainer
import torch
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.errors import InputDataError
from nae_monitor.train.collect import NEXT_TOKENS, TOP_TOKENS, collect, measure
from nae_monitor.train.conversations import (
    CollectOptions,
    choose_positions,
    is_content,
    opening_tokens,
    render,
    reply,
)
from nae_monitor.train.dataset import load_examples
from nae_monitor.train.targets import CLEAR_TOKENS
from nae_monitor.train.themes import KINDS, OPENING, UNCLEAR

OPTIONS = CollectOptions(
    layer=tiny_trainer.K,
    prompt_tokens=16,
    reply_tokens=6,
    positions_per_document=4,
    min_position=5,
    batch_size=4,
)
DOCUMENTS = [
    (tiny_trainer.document(f"how do people number {n} grow {'apples ' * (n % 5)}"), "train")
    for n in range(18)
]


@torch.inference_mode()
def greedy(model: Any, ids: list[int], tokens: int) -> list[int]:
    """One token after another, each by a forward pass of its own over everything before it."""
    ids = list(ids)
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


@torch.inference_mode()
def hidden(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states[tiny_trainer.K][0]


def ragged(seed: int) -> tuple[list[Any], list[list[int]]]:
    rng = np.random.default_rng(seed)
    lengths = [3, 17, 9, 30]
    talks = [tiny_trainer.conversation(rng.integers(5, 300, n).tolist()) for n in lengths]
    positions = [
        sorted(rng.choice(n, size=min(n, k), replace=False).tolist())
        for n, k in zip(lengths, (1, 6, 0, 4), strict=True)
    ]
    return talks, positions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", [0, 1])
def test_vectors_are_the_hidden_states_of_a_plain_forward(attention: str, seed: int) -> None:
    model = tiny_trainer.build_model(300, attention=attention, seed=seed)
    talks, positions = ragged(seed)
    for talk, at, found in zip(
        talks, positions, measure(model, talks, positions, OPTIONS), strict=True
    ):
        assert found.vectors.shape == (len(at), tiny_trainer.D)
        torch.testing.assert_close(
            found.vectors, hidden(model, talk.token_ids)[at], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_branched_continuations_equal_one_forward_pass_a_token(attention: str, seed: int) -> None:
    model = tiny_trainer.build_model(300, attention=attention, seed=seed)
    talks, positions = ragged(seed)
    measured = measure(model, talks, positions, OPTIONS)
    assert [len(m.next_ids) for m in measured] == [len(p) for p in positions]
    for talk, at, found in zip(talks, positions, measured, strict=True):
        for position, tokens in zip(at, found.next_ids, strict=True):
            prefix = list(talk.token_ids[: position + 1])
            assert tokens == greedy(model, prefix, NEXT_TOKENS)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_likeliest_next_tokens_are_those_of_a_plain_forward(seed: int) -> None:
    model = tiny_trainer.build_model(300, seed=seed)
    talks, positions = ragged(seed)
    measured = measure(model, talks, positions, OPTIONS)
    for talk, at, found in zip(talks, positions, measured, strict=True):
        assert [len(top) for top in found.top_ids] == [TOP_TOKENS] * len(at)
        logits = model(input_ids=torch.tensor([talk.token_ids])).logits[0]
        assert found.top_ids == logits[at].topk(TOP_TOKENS).indices.tolist()


def test_reduced_precision_stays_close_to_full_precision(model: Any) -> None:
    talks, positions = ragged(0)
    full = measure(model, talks, positions, OPTIONS)
    options = CollectOptions(layer=tiny_trainer.K, autocast=True)
    reduced = measure(model, talks, positions, options)
    assert [len(m.next_ids) for m in reduced] == [len(p) for p in positions]
    a, b = (torch.cat([m.vectors for m in measured]) for measured in (full, reduced))
    cosine = torch.nn.functional.cosine_similarity(a, b)
    assert cosine.min() > 0.98


def test_replies_are_the_models_own_greedy_tokens_whatever_the_batch(
    model: Any, tokenizer: Any
) -> None:
    talks = reply(model, tokenizer, DOCUMENTS[:6], OPTIONS)
    for (document, _), talk in zip(DOCUMENTS, talks, strict=False):
        prompt = render(tokenizer, document, OPTIONS.prompt_tokens)
        expected = greedy(model, prompt, OPTIONS.reply_tokens)
        if tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(tokenizer.eos_token_id)]
        assert talk.token_ids == (*prompt, *expected)
        assert talk.prompt_tokens == len(prompt)


def test_a_reply_ends_at_any_of_several_end_tokens(model: Any, tokenizer: Any) -> None:
    whole = reply(model, tokenizer, DOCUMENTS[:1], OPTIONS)[0]
    third = whole.token_ids[whole.prompt_tokens + 2]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [before, third]
    try:
        short = reply(model, tokenizer, DOCUMENTS[:1], OPTIONS)[0]
    finally:
        model.generation_config.eos_token_id = before
    new = whole.token_ids[whole.prompt_tokens :]
    assert short.token_ids[short.prompt_tokens :] == new[: new.index(third)]


def run(model: Any, tokenizer: Any, directory: Path, **changes: Any) -> list[tuple[int, int]]:
    return list(collect(model, tokenizer, DOCUMENTS, directory, OPTIONS, seed=3, **changes))


def test_a_killed_collection_resumes_to_the_same_shards(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    assert run(model, tokenizer, tmp_path) == [(n, 5) for n in range(1, 6)]
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "shard-00001.parquet").unlink()
    (tmp_path / "shard-00003.parquet").unlink()
    (tmp_path / "shard-00003.parquet.partial").write_bytes(b"half a shard")
    run(model, tokenizer, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first


def test_an_interrupt_leaves_whole_shards_only(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = pq.write_table, []

    def interrupted(table: Any, where: Path) -> None:
        calls.append(where)
        if len(calls) == 2:
            where.write_bytes(b"half")
            raise KeyboardInterrupt
        real(table, where)

    monkeypatch.setattr(pq, "write_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert pq.read_table(next(tmp_path.iterdir())).num_rows > 0


def test_rows_carry_the_tokens_around_their_position(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    run(model, tokenizer, tmp_path)
    rows = [r for p in sorted(tmp_path.iterdir()) for r in pq.read_table(p).to_pylist()]
    assert {r["digest"] for r in rows} == {d.digest for d, _ in DOCUMENTS}
    for row in rows:
        assert row["last_ids"][-1] == row["token_id"]
        assert row["position"] >= OPTIONS.min_position
        assert (row["phase"] == "completion") == bool(row["reply_ids"])
        assert len(row["next_ids"]) == NEXT_TOKENS
        assert len(row["top_ids"]) == TOP_TOKENS


def test_documents_that_end_too_early_give_no_row_and_no_error(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    options = CollectOptions(layer=tiny_trainer.K, reply_tokens=2, min_position=400)
    done = list(collect(model, tokenizer, DOCUMENTS[:2], tmp_path, options, seed=0))
    assert done == [(1, 1)]
    with pytest.raises(InputDataError, match="no usable rows of the split 'train'"):
        load_examples(tmp_path, tokenizer, "train")


def test_a_shard_of_an_unknown_kind_is_refused_by_name(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    documents = [(tiny_trainer.document("how do people grow apples", "no such kind"), "train")]
    list(collect(model, tokenizer, documents, tmp_path, OPTIONS, seed=3))
    with pytest.raises(InputDataError, match=r"shard-00000\.parquet"):
        load_examples(tmp_path, tokenizer, "train")


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "older"])
def test_a_damaged_shard_is_refused_by_name(
    damage: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    run(model, tokenizer, tmp_path)
    shard = tmp_path / "shard-00002.parquet"
    if damage == "foreign":
        pq.write_table(pq.read_table(shard).drop_columns(["top_ids"]), shard)
    elif damage == "older":  # before kinds there were themes
        table = pq.read_table(shard)
        names = ["theme" if name == "kind" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), shard)
    else:
        shard.write_bytes(shard.read_bytes()[: 900 if damage == "truncated" else 0])
    with pytest.raises(InputDataError, match=r"shard-00002\.parquet.*collect stage again"):
        load_examples(tmp_path, tokenizer, "train")


def test_no_shards_at_all_is_one_clear_error(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="holds no shards"):
        load_examples(tmp_path, tokenizer, "train")


def test_non_finite_and_outlying_vectors_are_left_out(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    run(model, tokenizer, tmp_path)
    before = load_examples(tmp_path, tokenizer, "train", norm_quantile=1.0)
    shard = tmp_path / "shard-00000.parquet"
    table = pq.read_table(shard)
    values = table.column("activation_vector").combine_chunks().flatten().to_numpy().copy()
    values[: tiny_trainer.D] = np.nan
    values[tiny_trainer.D : 2 * tiny_trainer.D] = np.inf
    values[2 * tiny_trainer.D : 3 * tiny_trainer.D] = 0
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(values), tiny_trainer.D)
    table = table.drop_columns(["activation_vector"]).append_column("activation_vector", column)
    pq.write_table(table, shard)
    after = load_examples(tmp_path, tokenizer, "train", norm_quantile=1.0)
    assert len(after) == len(before) - 3
    assert torch.isfinite(after.vectors).all()
    trimmed = load_examples(tmp_path, tokenizer, "train", norm_quantile=0.9)
    assert 0.8 * len(after) < len(trimmed) < len(after)
    assert trimmed.vectors.norm(dim=1).max() < after.vectors.norm(dim=1).max()


def test_a_shard_carries_its_documents_kind_as_far_as_the_targets(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    kinds = ["planning", "weapons", "smalltalk"]
    documents = [
        (tiny_trainer.document(f"{n} apples grow for {kind}", kind), "train")
        for n, kind in enumerate(kinds)
    ]
    list(collect(model, tokenizer, documents, tmp_path, OPTIONS, seed=3))
    rows = [r for p in sorted(tmp_path.iterdir()) for r in pq.read_table(p).to_pylist()]
    told = {document.digest: document.kind for document, _ in documents}
    assert {r["digest"]: r["kind"] for r in rows} == told
    examples = load_examples(tmp_path, tokenizer, "train", norm_quantile=1.0)
    for digest, target in zip(examples.digests, examples.targets, strict=True):
        assert target.kind in ("", told[digest])
        if target.kind:
            assert target.theme == KINDS[told[digest]].label  # nobody wrote a phrase for these


def test_targets_follow_from_where_the_position_stands(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """Oracle: the rendered prompt, position by position."""
    text = "how do people grow apples by the river this year"
    options = CollectOptions(
        layer=tiny_trainer.K, positions_per_document=500, min_position=0, batch_size=1
    )
    document = tiny_trainer.document(text)
    list(collect(model, tokenizer, [(document, "train")], tmp_path, options, seed=0))
    rows = pq.read_table(next(tmp_path.iterdir())).to_pylist()
    assert [r["position"] for r in rows] == list(range(len(rows)))
    examples = load_examples(tmp_path, tokenizer, "train", norm_quantile=1.0)
    prompt = render(tokenizer, document, options.prompt_tokens)
    first = opening_tokens(tokenizer)
    assert tokenizer.decode(prompt[first:]).startswith(text)
    assert len(examples) == len(rows) > len(prompt) > first + CLEAR_TOKENS
    for position, target in enumerate(examples.targets):
        said = position - first + 1
        theme = OPENING if said < 1 else UNCLEAR if said < CLEAR_TOKENS else "small talk"
        assert target.theme == theme
        assert (target.speaker == "prompt") == (position < len(prompt))
        assert bool(examples.content[position]) == (rows[position]["content"] and said > 0)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(1, 8),
    st.integers(0, 5),
)
def test_positions_are_distinct_eligible_and_as_many_as_asked(
    ids: list[int], opening: int, minimum: int, count: int, seed: int
) -> None:
    options = CollectOptions(layer=1, positions_per_document=count, min_position=minimum)
    found = choose_positions(
        tiny_trainer.conversation(ids),
        frozenset({0, 1}),
        opening,
        options,
        np.random.default_rng(seed),
    )
    assert found == sorted(set(found))
    assert len(found) == min(count, max(0, len(ids) - minimum))
    assert all(minimum <= p < len(ids) for p in found)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_content_is_a_place_without_a_template_token_beside_it(
    ids: list[int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(ids) - 1))
    near = [i for i in (position - 1, position, position + 1) if 0 <= i < len(ids)]
    assert is_content(ids, position, frozenset({0})) == all(ids[i] != 0 for i in near)


def test_the_opening_ends_where_the_users_words_begin(tokenizer: Any) -> None:
    ids = render(tokenizer, tiny_trainer.document("grow"), 16)
    opening = tokenizer.decode(ids[: opening_tokens(tokenizer)])
    assert opening.endswith("<|im_start|>user\n")
