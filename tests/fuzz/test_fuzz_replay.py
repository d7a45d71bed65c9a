"""The fuzzers' properties over their seeds and over what broke them once; needs no fuzzer."""

import pytest
from fuzz_properties import FIELD_END, PROPERTIES, WORD_END, matchers, rule_file
from fuzz_seeds import seeds

ONCE_BROKEN = {
    "a number to the base 60 of very many digits": b"schema_version: 1" + b":1" * 90_000,
    "an integer too long to be written out": b"title: 0x" + b"f" * 5_000,
    "the same inside a list": b"name: [0x" + b"f" * 390 + b"]",
    "nothing at all": b"",
    "a comment and a mark": b"\xef\xbb\xbf# nothing",
    "the beginning of an emoji": b"title: \xf0\x9f",
}
SELECTIONS = FIELD_END.join(
    ["{text}", "01the{w}a", "19b{w}é", "2:\\bna\\w+e\\b{w}e$", "3?naive idea", "7Gnaive idea"]
).replace("{w}", WORD_END)


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_hold_for_seeds_of_the_shipped_rules(name: str) -> None:
    found = seeds(name)
    assert found
    for seed in found[:: max(1, len(found) // 5)]:
        PROPERTIES[name](seed)


@pytest.mark.parametrize("data", ONCE_BROKEN.values(), ids=ONCE_BROKEN.keys())
def test_rule_files_that_once_hung_or_broke_the_reader_are_refused(data: bytes) -> None:
    rule_file(data)


@pytest.mark.parametrize(
    "text",
    ["a naïve idea, the “naive” ide\u0301a", "", "e" * 3_000, "\ud7ff\u0301 \u200bthe\u200d b"],
)
def test_selections_of_every_kind_agree_and_point_into_the_text(text: str) -> None:
    matchers(SELECTIONS.replace("{text}", text).encode())
