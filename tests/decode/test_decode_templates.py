"""Prompt templates and pinned suffixes as texts and ids alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_nla
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.decode import open_ar, open_av
from nae_monitor.decode.sidecar import render
from nae_monitor.decode.tokens import ar_prompt, ends_with
from nae_monitor.errors import CheckpointError

TEXTS = st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("{}"), max_size=20)
IDS = st.lists(st.integers(0, 5), max_size=6)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@given(before=TEXTS, after=TEXTS, value=TEXTS)
def test_rendering_equals_formatting_whatever_braces_stand_around_and_within(
    before: str, after: str, value: str
) -> None:
    template = escaped(before) + "{explanation}" + escaped(after)
    assert render(template, "explanation", value) == before + value + after
    assert render(template, "explanation", value) == template.format(explanation=value)


@given(ids=IDS, suffix=IDS)
def test_ids_end_with_what_was_appended_and_with_nothing(ids: list[int], suffix: list[int]) -> None:
    assert ends_with([*ids, *suffix], suffix)
    assert ends_with(ids, ())
    assert ends_with(ids, suffix) == any(ids[i:] == suffix for i in range(len(ids) + 1))


def test_doubled_braces_of_a_sidecar_reach_the_prompt_as_single_ones(
    official_copy: tuple[Path, Path], llama: Any
) -> None:
    sidecar = tiny_nla.read_sidecar(official_copy[1])
    sidecar["prompt_templates"]["ar"] = "{{json}} {explanation} }}{{"
    sidecar["tokens"]["critic_suffix_ids"] = []
    tiny_nla.write_sidecar(official_copy[1], sidecar)
    opened = open_ar(official_copy[1], llama.resolve)
    expected = opened.tokenizer("{json} dogs }{")["input_ids"]
    assert ar_prompt(opened.contract, opened.tokenizer, "dogs") == expected


def test_a_verbalizers_doubled_braces_do_too(official_copy: tuple[Path, Path], llama: Any) -> None:
    sidecar = tiny_nla.read_sidecar(official_copy[0])
    sidecar["prompt_templates"]["av"] = "{{x}} <c>{injection_char}</c>"
    tiny_nla.write_sidecar(official_copy[0], sidecar)
    opened = open_av(official_copy[0], llama.resolve)
    assert f"{{x}} <c>{tiny_nla.MARKER}</c>" in opened.tokenizer.decode(opened.prompt_ids)


@pytest.mark.parametrize(
    "template", ["{{explanation}}", "{explanation", "explanation}", "{explanation} {", "{}", "{0}"]
)
def test_a_template_whose_braces_are_not_one_field_is_refused(
    template: str, official_copy: tuple[Path, Path], llama: Any
) -> None:
    sidecar = tiny_nla.read_sidecar(official_copy[1])
    sidecar["prompt_templates"]["ar"] = template
    tiny_nla.write_sidecar(official_copy[1], sidecar)
    with pytest.raises(CheckpointError) as caught:
        open_ar(official_copy[1], llama.resolve)
    assert "template:ar" in {p.code for p in caught.value.problems}
