from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from message_decodes import HELD_OUT, chosen, collected, decoded, rows_of

from nae_monitor.detect.tools.corpus import read_corpus
from nae_monitor.errors import InputDataError
from nae_monitor.models import load_target, resolve_target
from nae_monitor.train.collect import collect
from nae_monitor.train.evaluate import open_for_evaluation
from nae_monitor.train.recipe import Recipe
from nae_monitor.train.splits import split_corpus
from nae_monitor.train.themes import KINDS, theme_of

Trained = tuple[Path, Path, Recipe]


def test_only_ordinary_documents_that_were_held_out_are_taken(
    trained: Trained, corpus: dict[str, Path]
) -> None:
    found = chosen(trained[2], False, HELD_OUT, lambda: corpus)
    splits = {d.digest: split for d, split in split_corpus(trained[2], lambda: corpus)}
    assert found
    for document, split in found:
        assert splits[document.digest] == split
        assert split in HELD_OUT
        assert not KINDS[theme_of(document.digest, document.kind).kind].harmful
    wanted = {
        d
        for d, split in splits.items()
        if split != "train" and d not in {document.digest for document, _ in found}
    }
    by_digest = {d.digest: d for d, _ in split_corpus(trained[2], lambda: corpus)}
    assert all(KINDS[theme_of(d, by_digest[d].kind).kind].harmful for d in wanted)
    hostile = {d.digest for d, _ in chosen(trained[2], True, HELD_OUT, lambda: corpus)}
    assert hostile == wanted


def test_a_split_without_such_messages_is_said(trained: Trained, corpus: dict[str, Path]) -> None:
    with pytest.raises(InputDataError, match="no such messages in elsewhere"):
        chosen(trained[2], False, ["elsewhere"], lambda: corpus)


def test_an_earlier_collection_gives_the_rows_of_the_chosen_messages_alone(
    trained: Trained, corpus: dict[str, Path], tmp_path: Path
) -> None:
    target = load_target(trained[2].target)
    everything = split_corpus(trained[2], lambda: corpus)
    for _ in collect(
        target.model, target.tokenizer, everything, tmp_path, trained[2].collect, seed=0
    ):
        pass
    documents = chosen(trained[2], False, HELD_OUT, lambda: corpus)
    rows = rows_of(tmp_path, documents, 1, target.tokenizer)
    digests = [row["digest"] for row in rows]
    assert len(digests) == len(set(digests))
    assert set(digests) <= {d.digest for d, _ in documents}
    assert all(row["content"] for row in rows)
    with pytest.raises(InputDataError, match="no activations of these messages"):
        rows_of(tmp_path / "empty", documents, 1, target.tokenizer)


def test_lines_are_a_corpus_that_backtest_reads(
    trained: Trained, corpus: dict[str, Path], tmp_path: Path
) -> None:
    documents = chosen(trained[2], False, HELD_OUT, lambda: corpus)[:6]
    rows = collected(trained[2], documents, 2, False, lambda *_: None)
    pair = open_for_evaluation(trained[0], trained[1], resolve_target, dtype=torch.float32)
    lines = list(decoded(pair, trained[2], rows))
    assert {line["request_id"] for line in lines} <= {d.digest[:16] for d, _ in documents}
    assert len({line["id"] for line in lines}) == len(lines) == len(rows)
    file = tmp_path / "ordinary.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    samples = list(read_corpus([file]))
    texts = {d.text for d, _ in documents}
    for line, sample in zip(lines, samples, strict=True):
        assert sample.decoding.text == line["explanation"]
        assert line["nla_id"] == trained[2].nla_id
        assert sample.transcript.prompt in texts
        assert sample.decoding.fve == pytest.approx(line["fve"], nan_ok=True)


def test_the_order_depends_on_the_seed_alone(trained: Trained, corpus: dict[str, Path]) -> None:
    first, again = (chosen(trained[2], False, HELD_OUT, lambda: corpus) for _ in range(2))
    assert first == again
    other = chosen(dataclasses.replace(trained[2], seed=7), False, HELD_OUT, lambda: corpus)
    assert [d.digest for d, _ in other] != [d.digest for d, _ in first]
