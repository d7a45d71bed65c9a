from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import tiny_trainer
from transformers import PreTrainedTokenizerFast

from nae_monitor.train import ar
from nae_monitor.train.conversations import opening_tokens, render, user_turn


@dataclass(frozen=True)
class Family:
    """How one family of chat models frames a turn; ours in wording, theirs in shape."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    system: str
    turn: str  # a turn of role and content
    ask: str  # opens the reply
    opening: str  # what user_turn should give

    def tokenizer(self, *, adds_bos: bool, system: bool = True) -> PreTrainedTokenizerFast:
        template = (
            ("{{ bos_token }}" if self.bos else "")
            + ("{{ '" + self.system + "' }}" if system and self.system else "")
            + "{% for m in messages %}{{ '"
            + self.turn.replace("ROLE", "' + m['role'] + '").replace(
                "CONTENT", "' + m['content'] + '"
            )
            + "' }}{% endfor %}{% if add_generation_prompt %}{{ '"
            + self.ask
            + "' }}{% endif %}"
        ).replace("\n", "\\n")
        return tiny_trainer.build_character_tokenizer(
            special=self.special, bos=self.bos, eos=self.eos, chat=template, adds_bos=adds_bos
        )


FAMILIES = {
    "chatml": Family(
        special=("<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        system="<|im_start|>system\nYou answer kindly.<|im_end|>\n",
        turn="<|im_start|>ROLE\nCONTENT<|im_end|>\n",
        ask="<|im_start|>assistant\n",
        opening="<|im_start|>user\n",
    ),
    "llama3": Family(
        special=("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        system="<|start_header_id|>system<|end_header_id|>\n\nToday is a day.<|eot_id|>",
        turn="<|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>",
        ask="<|start_header_id|>assistant<|end_header_id|>\n\n",
        opening="<|start_header_id|>user<|end_header_id|>\n\n",
    ),
    "gemma": Family(
        special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        system="",
        turn="<start_of_turn>ROLE\nCONTENT<end_of_turn>\n",
        ask="<start_of_turn>model\n",
        opening="<start_of_turn>user\n",
    ),
    "mistral": Family(
        special=("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        system="",
        turn="[INST] CONTENT[/INST]",
        ask="",
        opening="[INST] ",
    ),
}


def cases() -> list[Any]:
    """Every family with and without its system prompt and a BOS of the tokenizer's own."""
    found = []
    for name, family in FAMILIES.items():
        for system in (False, True) if family.system else (False,):
            for adds_bos in (False, True) if family.bos else (False,):
                found.append(pytest.param(name, adds_bos, system))
    return found


@pytest.mark.parametrize(("name", "adds_bos", "system"), cases())
def test_a_users_turn_opens_as_the_family_opens_it(name: str, adds_bos: bool, system: bool) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer(adds_bos=adds_bos, system=system)
    own = "" if adds_bos or not family.bos else family.bos  # which nobody else would put there
    assert user_turn(tokenizer) == own + family.opening


@pytest.mark.parametrize(("name", "adds_bos", "system"), cases())
def test_a_reconstructors_prompt_is_the_first_turn_of_a_conversation_without_system_prompt(
    name: str, adds_bos: bool, system: bool
) -> None:
    """Oracle: the chat template's own tokens up to the end of the user's words."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer(adds_bos=adds_bos, system=system)
    (found,) = ar.encode_explanations(tokenizer, ['at "a"; expects "b'])
    bare = family.tokenizer(adds_bos=adds_bos, system=False)
    whole = render(bare, tiny_trainer.document('at "a"; expects "b'), 96)
    assert found == whole[: len(found)]
    assert tokenizer.decode(found).endswith('expects "b')
    bos = tokenizer.bos_token_id
    assert found.count(bos) == (1 if family.bos else 0)
    assert not family.bos or found[0] == bos


def test_a_turn_opener_with_a_role_is_found_behind_the_system_prompt() -> None:
    """The small model's own form: the turn opener is its BOS, which is not added once more."""
    tokenizer = tiny_trainer.build_tokenizer()
    assert tokenizer.bos_token == "<|im_start|>"
    assert "You answer kindly" in tokenizer.chat_template
    assert user_turn(tokenizer) == "<|im_start|>user\n"


def test_a_turn_opener_that_the_tokenizer_adds_itself_stands_there_once() -> None:
    family = FAMILIES["chatml"]
    template = family.tokenizer(adds_bos=False).chat_template
    tokenizer = tiny_trainer.build_character_tokenizer(
        special=family.special,
        bos="<|im_start|>",
        eos=family.eos,
        chat=template,
        adds_bos=True,
    )
    assert user_turn(tokenizer) == "user\n"
    (found,) = ar.encode_explanations(tokenizer, ["a"])
    assert tokenizer.decode(found) == "<|im_start|>user\na"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_opening_is_all_that_stands_before_the_users_words(name: str) -> None:
    tokenizer = FAMILIES[name].tokenizer(adds_bos=False)
    ids = render(tokenizer, tiny_trainer.document("grow apples"), 96)
    opening = opening_tokens(tokenizer)
    assert tokenizer.decode(ids[:opening]).endswith(FAMILIES[name].opening)
    assert tokenizer.decode(ids[opening:]).startswith("grow apples")
