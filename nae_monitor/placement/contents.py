"""What several kinds of frames hold: token ids, ledgers, members of enumerations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

import numpy as np

from nae_monitor.placement.fields import Fields
from nae_monitor.placement.frame import Frame, FrameError

_LEDGER_NAME = re.compile(r"(tokens\.[a-z_]{1,32}|dropped\.[a-z0-9_]{1,48})")
Ledger = Mapping[str, int]  # counters of one request, cumulative
E = TypeVar("E", bound=StrEnum)


def read_turn(frame: Frame) -> int:
    """The turn that a frame of any kind is about; FrameError where it names none."""
    return Fields(frame.header).integer("turn")


def read_ledger(fields: Fields) -> Ledger:
    """Counters of one request; FrameError where a name is none of a ledger's."""
    ledger = fields.object("ledger")
    if not all(_LEDGER_NAME.fullmatch(name) for name in ledger):
        raise FrameError("ledger holds a name that is no counter's")
    amounts = Fields(ledger)
    return {name: amounts.integer(name, 0, 2**53) for name in ledger}


def read_losses(fields: Fields) -> Ledger:
    """Reasons in words for which a request is not clean, and how often each came up."""
    losses = fields.object("losses")
    amounts = Fields(losses)
    return {why: amounts.integer(why, 1, 2**53) for why in losses}


def own_ledger(counts: Mapping[str, int]) -> Ledger:
    """The counters of a request that may travel."""
    return {name: n for name, n in counts.items() if n > 0 and _LEDGER_NAME.fullmatch(name)}


def member(cls: type[E], value: str) -> E:
    """The member of that value; FrameError where there is none."""
    try:
        return cls(value)
    except ValueError as error:
        raise FrameError(f"not a {cls.__name__}") from error


def ids_to_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as they stand in a body."""
    return np.asarray(ids, dtype="<i4").tobytes()


def ids_from_bytes(body: memoryview, amount: int) -> tuple[tuple[int, ...], memoryview]:
    """``amount`` token ids from the front of a body, and the rest of it."""
    if amount * 4 > len(body):
        raise FrameError("there are fewer token ids than announced")
    ids = np.frombuffer(body[: amount * 4], dtype="<i4")
    if amount and int(ids.min()) < 0:
        raise FrameError("a token id is negative")
    return tuple(ids.tolist()), body[amount * 4 :]


def nothing_left(rest: memoryview) -> None:
    """FrameError where a body goes on."""
    if len(rest):
        raise FrameError("the body is longer than announced")
