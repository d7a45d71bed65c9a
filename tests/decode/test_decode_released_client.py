"""A recording and an exported pair in the hands of the released pairs' client.

What that client does with ``--parquet``: it takes the first rows of the column
``activation_vector`` of one file, as float32, and asks for nothing else of the file; it makes each
as long as the sidecar's ``injection_scale``, puts it where the marker stands in the embedded
prompt, sends those embeddings and no ids, and shows what stands between the tags of the answer.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_nla
import torch
from recording_parts import write_undecoded
from released_client import Actor, sidecar_of

from nae_monitor.decode import load_nla, open_av, open_pair, write_merged_pair
from nae_monitor.decode.engines.torch_engine import TorchEngine
from nae_monitor.decode.prompts import PromptBuilder, parse_explanation
from nae_monitor.recording import Recording
from nae_monitor.settings import NlaSettings

ROWS, TOKENS = 4, 24
BETWEEN_TAGS = re.compile(r"<explanation>\s*(.*?)\s*</explanation>", re.DOTALL)


def no_base(name: str) -> Path:
    raise AssertionError(f"{name} was asked for")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noise = torch.Generator().manual_seed(8)
    vectors = [3 * torch.randn(tiny_nla.D, generator=noise) for _ in range(ROWS + 2)]
    return write_undecoded(tmp_path_factory.mktemp("recording") / "run", vectors, tiny_nla.D)


@pytest.fixture
def exported(tiny: Any, tmp_path: Path) -> tuple[Path, Path]:
    """In bfloat16, as ``nla export --merged`` writes a pair when nothing else is said."""
    pair = open_pair(*tiny.adapter, tiny.resolve)
    return write_merged_pair(*pair, tmp_path / "merged", dtype=torch.bfloat16)


def as_the_client_reads_them(directory: Path) -> torch.Tensor:
    file = pq.ParquetFile(directory / "activations-00000.parquet")
    batch = next(file.iter_batches(batch_size=ROWS, columns=["activation_vector"]))
    flat = batch.column("activation_vector").flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.astype(np.float32).reshape(len(batch), -1))


def test_the_client_reads_the_vectors_that_we_read(recording: Path) -> None:
    rows = [row.activation.vector for row in Recording.open(recording).activations()]
    assert torch.equal(as_the_client_reads_them(recording), torch.stack(rows[:ROWS]).float())


def test_the_sidecar_holds_every_key_that_the_client_asks_for(exported: tuple[Path, Path]) -> None:
    meta = sidecar_of(exported[0])
    assert isinstance(meta["d_model"], int)
    assert meta["extraction"]["injection_scale"] > 0
    assert "{injection_char}" in meta["prompt_templates"]["av"]
    names = ("token_id", "left_neighbor_id", "right_neighbor_id")
    assert all(isinstance(meta["tokens"][f"injection_{name}"], int) for name in names)
    assert len(meta["tokens"]["injection_char"]) == 1


def test_the_client_sends_the_prompt_embeddings_that_we_decode(
    exported: tuple[Path, Path], recording: Path
) -> None:
    actor, checkpoint = Actor(exported[0]), open_av(exported[0], no_base)
    assert tuple(actor.ids) == checkpoint.prompt_ids
    engine = TorchEngine(actor.model, actor.tokenizer, batch_size=1)
    builder = PromptBuilder(checkpoint, engine.prompt_rows(checkpoint.prompt_ids))
    vectors = as_the_client_reads_them(recording)
    ours = builder.build(vectors).embeddings
    theirs = torch.stack([actor.prompt(vector) for vector in vectors])
    assert theirs.dtype == ours.dtype == torch.float32
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=0)
    template = [i for i in range(len(actor.ids)) if i != actor.place]
    assert torch.equal(theirs[:, template], ours[:, template])


def test_the_clients_texts_of_a_recording_are_ours(
    exported: tuple[Path, Path], recording: Path
) -> None:
    actor = Actor(exported[0])
    settings = NlaSettings(device="cpu", max_new_tokens=TOKENS)
    nla = load_nla(*exported, settings=settings, resolve_base=no_base)
    rows = [row.activation.vector for row in Recording.open(recording).activations()][:ROWS]
    texts = [actor.write(vector, TOKENS) for vector in as_the_client_reads_them(recording)]
    assert texts == [decoding.text for decoding in nla.decode(torch.stack(rows))]


@pytest.mark.parametrize(
    "answer", ["<explanation>\n one\ntwo </explanation> more", "<explanation>x</explanation>"]
)
def test_what_the_client_cuts_out_of_an_answer_is_what_we_cut_out(answer: str) -> None:
    found = BETWEEN_TAGS.search(answer)
    assert found is not None
    assert parse_explanation(answer) == (found.group(1), True)
