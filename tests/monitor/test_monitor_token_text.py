"""Token texts join to the whole text, whatever the tokens, and never depend on what follows."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nae_monitor.token_text import REPLACEMENT, TextStream, TokenText

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again. 12345 (yes)",
    "Übergrößenträger fährt über die Straße; naïve café, señor, Ångström",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "日本語のテキストと漢字、ひらがな。中文字符也在这里。한국어 문장입니다",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flags 🇩🇪🇯🇵 😀😃😄 🤖🤝🧠 e\u0301 a\u0308\u0323 \u200d\u202e",
    'fn main() { println!("{:?}", x); }\n\tif a != b:\r\n        return None\n\n\n',
]
SPECIAL = ["<|begin|>", "<|end|>", "<|user|>"]


@cache
def byte_level() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@cache
def byte_fallback() -> Any:
    """The kind of Llama 2: word pieces with a leading space, and bytes for everything else."""
    pieces = ["<unk>", *[f"<0x{b:02X}>" for b in range(256)], "▁", "▁the", "▁fox", "é", "ing", "▁a"]
    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def texts_of(tokenizer: Any, ids: list[int]) -> list[str]:
    return TextStream(TokenText(tokenizer)).extend(ids)


def assert_joins(tokenizer: Any, ids: list[int]) -> None:
    joined = "".join(texts_of(tokenizer, ids))
    whole = TokenText(tokenizer).decode(ids)
    # Only bytes that are no character yet are held back at the end.
    assert whole.startswith(joined)
    assert not whole[len(joined) :].strip(REPLACEMENT)


WITH_SPECIAL = st.integers(0, len(byte_level()) - 1)
WITHOUT_SPECIAL = st.integers(len(SPECIAL), len(byte_level()) - 1)


def byte_ids(*values: int) -> list[int]:
    """Ids of the single bytes ``values`` in the byte-level vocabulary."""
    alphabet = bytes_to_letters()
    return [byte_level().convert_tokens_to_ids(alphabet[value]) for value in values]


@cache
def bytes_to_letters() -> dict[int, str]:
    """The byte-level alphabet: printable bytes stand for themselves, others from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


@settings(max_examples=400, deadline=None)
@given(st.lists(WITHOUT_SPECIAL, max_size=60))
@example(byte_ids(*[0xF0, 0x9F, 0x98] * 30))
@example(byte_ids(*[0x80] * 100))
@example(byte_ids(*[0xF0] * 70, 0x41))
@example(byte_ids(*[0xE0, 0x80] * 20, *"é😀".encode()))
@example(byte_ids(0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD, 0x41, 0xEF, 0xBF, 0xBD))
def test_token_texts_join_to_the_text_of_the_whole(ids: list[int]) -> None:
    assert_joins(byte_level(), ids)


@settings(max_examples=300, deadline=None)
@given(st.lists(WITH_SPECIAL, max_size=60))
def test_token_texts_join_to_the_whole_with_special_tokens_in_between(ids: list[int]) -> None:
    assert_joins(byte_level(), ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*CORPUS, "x", " ", "🧑🏽‍🚀"]), max_size=4).map("".join))
def test_token_texts_of_encoded_text_are_the_text(text: str) -> None:
    ids = byte_level()(text, add_special_tokens=False)["input_ids"]
    assert "".join(texts_of(byte_level(), ids)) == text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_token_texts_join_for_pieces_with_byte_fallback(text: str) -> None:
    known = byte_fallback().get_vocab()
    ids = [0]
    for character in text:
        piece = known.get(character)
        ids += [1 + b for b in character.encode("utf-8", "ignore")] if piece is None else [piece]
        ids += [known["▁fox"]] * (len(ids) % 3 == 0)
    assert_joins(byte_fallback(), ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(WITH_SPECIAL, min_size=1, max_size=40), st.data())
def test_the_text_of_a_token_never_depends_on_later_tokens(
    ids: list[int], data: st.DataObject
) -> None:
    known = data.draw(st.integers(1, len(ids)))
    assert texts_of(byte_level(), ids)[:known] == texts_of(byte_level(), ids[:known])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=30), st.lists(WITH_SPECIAL, max_size=60))
def test_the_steps_in_which_a_sequence_grows_change_nothing(
    steps: list[int], ids: list[int]
) -> None:
    stream, texts, at = TextStream(TokenText(byte_level())), [], 0
    for step in [*steps, len(ids)]:
        texts += stream.extend(ids[at : at + step])
        at += step
    assert texts == texts_of(byte_level(), ids)


@pytest.mark.parametrize("text", CORPUS)
def test_one_token_by_itself_has_the_text_it_has_in_the_stream(text: str) -> None:
    ids = byte_level()(text)["input_ids"]
    one = TokenText(byte_level())
    assert [one.at(ids, i) for i in range(len(ids))] == texts_of(byte_level(), ids)


def test_a_completion_goes_on_from_the_context_of_its_prompt() -> None:
    ids = byte_fallback().convert_tokens_to_ids(["▁the", "▁fox", "▁a", "▁fox", "ing"])
    stream = TextStream(TokenText(byte_fallback()), before=ids[:2])
    assert stream.extend(ids[2:]) == [" a", " fox", "ing"]
