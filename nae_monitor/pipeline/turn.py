"""One generation of one sequence, and the rows that were taken from it."""

from __future__ import annotations

from dataclasses import dataclass

from nae_monitor.host_copy import HostCopy
from nae_monitor.records import Activation, Request, Stop, StopOutcome, Transcript
from nae_monitor.token_text import CONTEXT_TOKENS, TextStream, TokenText
from nae_monitor.transcripts import transcript_at


@dataclass(slots=True)
class StopOrder:
    """That a turn's generation is to end, and whether it was ended.

    Rules that ask while it is open share it; one that asks after a refusal has its own.
    """

    limits: list[tuple[int, int]]  # of each rule that set one: its hit's position, within_tokens
    outcome: StopOutcome | None = None  # BLOCKED or REFUSED, once somebody said so
    ended_at: tuple[int, int] | None = None  # tokens: length and generated, when it was ended


class Turn:
    """The tokens of a request from its prompt to the end of one completion.

    The serving thread appends to ``output_ids``; everything else belongs to the background thread.

    Args:
        request: whose turn.
        prompt_ids: the prompt's known token ids.
        text: the decoder of the tokenizer the model was watched with.
        text_known: False where positions and known tokens do not line up, so that no text may be
            told; rules that read it are then undecided.
    """

    def __init__(
        self, request: Request, prompt_ids: tuple[int, ...], text: TokenText, *, text_known: bool
    ) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.output_ids: list[int] = []
        self.finished_unix_ns = 0  # 0: still generating
        self.text_known = text_known
        self.rows_seen = False
        self.chosen_position: int | None = None  # the last that the screen chose; see FollowUps
        self.unjudged: set[int] = set()  # positions queued and not judged; kept by the brake
        self.held_s = 0.0  # how long its generation was kept waiting
        self.stop_order: StopOrder | None = None  # the latest
        self.stop_orders: dict[str, StopOrder] = {}  # by the id of each rule that asked
        self.asks_brake = False  # whether who generates it asks, token by token, if it is to end
        self.stop_wishes: dict[str, Stop] = {}  # by rule id, as they were when they came
        self.stops_unrecorded = False  # whether the recording refused one of them
        self._text = text
        self._prompt_text: str | None = None
        self._stream: TextStream | None = None
        self._output_texts: list[str] = []

    @property
    def prompt_text(self) -> str | None:
        """The prompt's text; None where it is not known."""
        if not self.text_known:
            return None
        if self._prompt_text is None:
            self._prompt_text = self._text.decode(self.prompt_ids)
        return self._prompt_text

    def output_texts(self) -> list[str] | None:
        """The texts of the completion's tokens known now; None where they are not known."""
        if not self.text_known:
            return None
        if self._stream is None:
            self._stream = TextStream(self._text, before=self.prompt_ids)
        self._output_texts += self._stream.extend(self.output_ids[len(self._output_texts) :])
        return self._output_texts

    def prompt_token_texts(self) -> tuple[str, ...] | None:
        """The texts of the prompt's tokens; None where they are not known."""
        if not self.text_known:
            return None
        return tuple(TextStream(self._text).extend(self.prompt_ids))

    def token_text(self, position: int, token_id: int) -> str:
        """The text of the token ``token_id`` at ``position``, in its context where that is known.

        Looks at a few ids only: a prompt may be long and rows many.
        """
        first = max(0, position - CONTEXT_TOKENS)
        ids = self._ids_between(first, position + 1)
        if not self.text_known or len(ids) != position + 1 - first or ids[-1] != token_id:
            ids = [token_id]
        return self._text.at(ids, len(ids) - 1)

    def _ids_between(self, start: int, end: int) -> list[int]:
        prompt_tokens = len(self.prompt_ids)
        output = slice(max(0, start - prompt_tokens), max(0, end - prompt_tokens))
        return [*self.prompt_ids[start:end], *self.output_ids[output]]

    def prefix_ids(self, position: int, token_id: int) -> list[int] | None:
        """The tokens up to and including the one at ``position``; None where they are not known."""
        ids = self._ids_between(0, position + 1)
        known = self.text_known and len(ids) == position + 1 and ids[-1] == token_id
        return ids if known else None

    def transcript(self, position: int) -> Transcript:
        """What had been said at ``position`` (tokens from 0)."""
        return transcript_at(self.prompt_text, self.output_texts(), len(self.prompt_ids), position)


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """A chosen row on its way to the decoder. Its vector is complete after ``copy.wait()``."""

    activation: Activation
    turn: Turn
    copy: HostCopy
    queued_s: float  # on the pipeline's clock
    seed: int | None = None  # of a sampled text; None: as the settings say


@dataclass(frozen=True, eq=False, slots=True)
class Ended:
    """The end of a turn, behind all its rows."""

    turn: Turn
