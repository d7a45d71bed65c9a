"""Where texts end, by the ids of the embedded verbalizer's own tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nae_monitor.decode.checkpoint import open_av
from nae_monitor.decode.engines.text_end import TextEnd
from nae_monitor.models import resolve_nla, resolve_target
from nae_monitor.settings import EMBEDDED_AV


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return open_av(resolve_nla(EMBEDDED_AV), resolve_target).tokenizer


@pytest.fixture(scope="module")
def end(tokenizer: Any) -> TextEnd:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[0]))
    return TextEnd(model, tokenizer)


def until_end(end: TextEnd, ids: list[int]) -> list[int]:
    """As much of the ids as an engine would have written."""
    for count in range(1, len(ids) + 1):
        if end.reached(ids[:count]):
            return ids[:count]
    return ids


@pytest.mark.parametrize("said", ["a", 'next "tok', "<explanation>", "x </", "< / explanation"])
def test_a_text_ends_within_its_closing_tag_and_has_it_whole(
    said: str, tokenizer: Any, end: TextEnd
) -> None:
    ids = tokenizer(f"{said}</explanation>\n")["input_ids"]
    written = until_end(end, ids)
    assert end.text(written) == f"{said}</explanation>"
    assert len(written) == len(ids) - 3  # "ation", ">" and the line's end are never written


@pytest.mark.parametrize(
    "tag",
    ["</div>", "</example>", "</expected>", "</export>", "</exp", "</", "</expla", "</explained>"],
)
def test_another_closing_tag_ends_no_text(tag: str, tokenizer: Any, end: TextEnd) -> None:
    ids = tokenizer(f'prompt "of the {tag} page')["input_ids"]
    assert until_end(end, ids) == ids
    assert end.text(ids) == f'prompt "of the {tag} page'


def test_a_tag_spelt_letter_by_letter_ends_the_text(tokenizer: Any, end: TextEnd) -> None:
    ids = [i for letter in "so</explanation>" for i in tokenizer(letter)["input_ids"]]
    assert end.text(until_end(end, ids)) == "so</explanation>"


def test_an_end_token_ends_the_text_and_is_no_part_of_it(tokenizer: Any, end: TextEnd) -> None:
    ids = [*tokenizer("cut off")["input_ids"], tokenizer.eos_token_id]
    assert until_end(end, ids) == ids
    assert end.text(ids) == "cut off"
