"""Tokenizers and the prompts of both roles as token ids, checked against the sidecar's pins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer

from nae_monitor.decode.contract import ArContract, AvContract
from nae_monitor.decode.sidecar import Fields, render
from nae_monitor.errors import Mark, Problem
from nae_monitor.models.progress import quiet_loading

CHAT_TEMPLATE = "chat_template.jinja"
MAX_TEMPLATE_BYTES = 1024 * 1024
# Texts of several shapes: the suffix must survive whatever stands before it.
PROBES = ("x", "a short explanation.", 'ends in "quotes"', "", "two\nlines")


def load_tokenizer(weights: Path, directory: Path, problems: list[Problem]) -> Any:
    """The role's tokenizer: its own where it ships one, else the base model's.

    A ``chat_template.jinja`` in the role's directory overrides the tokenizer's template.
    """
    own = (directory / "tokenizer.json").is_file() or directory == weights
    place = directory if own else weights
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(
                place, local_files_only=True, trust_remote_code=False
            )
        template = directory / CHAT_TEMPLATE
        if template.is_file():
            if template.stat().st_size > MAX_TEMPLATE_BYTES:
                raise ValueError("chat template too large")
            tokenizer.chat_template = template.read_text(encoding="utf-8")
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception on bad files
        text = f"the tokenizer cannot be loaded ({type(error).__name__})"
        problems.append(Problem(Mark(str(place)), text, "", "tokenizer"))
        return None
    return tokenizer


def av_prompt(
    contract: AvContract, tokenizer: Any, fields: Fields
) -> tuple[tuple[int, ...], int] | None:
    """The chat-templated prompt and the marker's position, or None where a check failed.

    The template is applied and tokenised in one step: templating first and encoding after would
    add the special tokens twice.
    """
    before = len(fields.problems)
    _check_marker(contract, tokenizer, fields)
    ids = _apply_chat_template(contract, tokenizer, fields)
    if ids is None:
        return None
    _check_bos_once(ids, tokenizer, fields)
    token = ("tokens", "injection_token_id")
    places = [i for i, token_id in enumerate(ids) if token_id == contract.injection_token_id]
    if len(places) != 1:
        text = f"appears {len(places)} times in the prompt, not once"
        fields.problem(token, text, "tokenizer and template must match", "marker-count")
        return None
    place = places[0]
    for name, offset, pinned, code in (
        ("injection_left_neighbor_id", -1, contract.left_neighbor_id, "marker-left"),
        ("injection_right_neighbor_id", 1, contract.right_neighbor_id, "marker-right"),
    ):
        other = place + offset
        found = ids[other] if 0 <= other < len(ids) else None
        if found != pinned:
            text = f"is {pinned}, but the prompt has {found} there"
            fields.problem(("tokens", name), text, "tokenizer and template must match", code)
    return (tuple(ids), place) if len(fields.problems) == before else None


def check_ar_prompt(
    contract: ArContract, tokenizer: Any, fields: Fields, *, require_bos: bool
) -> None:
    """Check that reconstructor prompts keep the pinned suffix, if there is one, and their BOS.

    Args:
        contract: the sidecar.
        tokenizer: the role's tokenizer.
        fields: where problems are noted.
        require_bos: official form: a tokenizer that has a BOS must add it, since the pair was
            trained so. Our adapters are trained with whatever the base tokenizer adds.
    """
    path = ("tokens", "critic_suffix_ids")
    prompts = [ar_prompt(contract, tokenizer, text) for text in PROBES]
    broken = sum(not ends_with(ids, contract.suffix_ids) for ids in prompts)
    if broken:
        text = f"is not how {broken} of {len(prompts)} probe prompts end"
        fields.problem(path, text, "tokenizer and template must match", "suffix")
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    if require_bos and any(ids[:1] != [bos] for ids in prompts):
        text = "gives prompts without the tokenizer's BOS"
        fields.problem(("prompt_templates",), text, "the tokenizer must add it", "ar-bos")
    for ids in prompts[:1]:
        _check_bos_once(ids, tokenizer, fields)


def ar_prompt(contract: ArContract, tokenizer: Any, explanation: str) -> list[int]:
    """A reconstructor prompt: raw text encoded with special tokens, never chat-templated."""
    text = render(contract.prompt_template, "explanation", explanation)
    return list(tokenizer(text, add_special_tokens=True)["input_ids"])


def ends_with(ids: Sequence[int], suffix: Sequence[int]) -> bool:
    """Whether ``ids`` end with ``suffix``; every prompt ends with an empty one."""
    start = len(ids) - len(suffix)
    return start >= 0 and list(ids[start:]) == list(suffix)


def _check_marker(contract: AvContract, tokenizer: Any, fields: Fields) -> None:
    ids = list(tokenizer(contract.injection_char, add_special_tokens=False)["input_ids"])
    if ids != [contract.injection_token_id]:
        text = f"encodes to {ids}, not to [{contract.injection_token_id}]"
        mend = "the tokenizer is not the one the pair was trained with"
        fields.problem(("tokens", "injection_char"), text, mend, "marker-encoding")
    if contract.injection_token_id == tokenizer.unk_token_id:
        text = "is the unknown token"
        fields.problem(("tokens", "injection_token_id"), text, "", "marker-unknown")


def _apply_chat_template(contract: AvContract, tokenizer: Any, fields: Fields) -> list[int] | None:
    content = render(contract.prompt_template, "injection_char", contract.injection_char)
    path = ("prompt_templates",)
    if not tokenizer.chat_template:
        mend = f"ship a {CHAT_TEMPLATE}"
        fields.problem(path, "needs a chat template, the tokenizer has none", mend, "chat-template")
        return None
    try:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=False,  # transformers 5 returns a mapping by default
            add_generation_prompt=True,
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        text = f"cannot be put through the chat template ({type(error).__name__})"
        fields.problem(path, text, f"mend {CHAT_TEMPLATE}", "chat-template-broken")
        return None
    return list(ids)


def _check_bos_once(ids: list[int], tokenizer: Any, fields: Fields) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        text = "gives a prompt that begins with two BOS tokens"
        mend = "let either the template or the tokenizer add it"
        fields.problem(("prompt_templates",), text, mend, "bos-twice")
