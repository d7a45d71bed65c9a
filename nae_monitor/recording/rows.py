"""What a recording holds, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from nae_monitor.records import Activation, Coverage, Decoding, Request, Transcript, VerdictState
from nae_monitor.transcripts import transcript_at

WITHHELD_TOKEN_ID = -1  # token id of an activation whose content was not recorded


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request: what was said, how much was looked at, and the verdict.

    The token lists are None where the content setting withholds them; the counts stay.
    Raises ValueError where a list disagrees with its count.
    """

    request: Request
    prompt_text: str | None  # as rules saw it
    prompt_tokens: int
    output_tokens: int
    coverage: Coverage
    state: VerdictState
    reasons: tuple[str, ...] = ()  # why undecided
    prompt_token_ids: tuple[int, ...] | None = None
    output_token_ids: tuple[int, ...] | None = None
    prompt_token_texts: tuple[str, ...] | None = None
    output_token_texts: tuple[str, ...] | None = None
    finished_unix_ns: int = 0

    def __post_init__(self) -> None:
        for name, count in (("prompt", self.prompt_tokens), ("output", self.output_tokens)):
            for kind in ("ids", "texts"):
                tokens = getattr(self, f"{name}_token_{kind}")
                if tokens is not None and len(tokens) != count:
                    raise ValueError(
                        f"{name}_token_{kind} has {len(tokens)} entries, {name}_tokens is {count}"
                    )

    @property
    def output_text(self) -> str | None:
        """The completion's token texts joined; None where withheld."""
        texts = self.output_token_texts
        return None if texts is None else "".join(texts)


@dataclass(frozen=True, eq=False, slots=True)
class RecordedActivation:
    """One row of an activations file.

    Where the content setting withheld text, ``activation`` has token id -1 and token "", and the
    text of ``decoding`` is a keyed hash or empty: judge only what :attr:`readable_decoding` gives.
    """

    activation: Activation
    decoding: Decoding | None  # None: not decoded live
    dropped_reason: str | None = None
    text_withheld: bool = False
    context_text: str | None = None  # files of the reference implementation: text up to the token

    @property
    def readable_decoding(self) -> Decoding | None:
        """The live decoding if it exists and its text was recorded."""
        return None if self.text_withheld else self.decoding


def transcript_for(record: RequestRecord | None, position: int) -> Transcript:
    """The transcript at ``position`` (tokens from 0) of a recorded request.

    A request that never finished has no record (None): its text is unknown, not empty.
    """
    if record is None:
        return Transcript(None, None)
    return transcript_at(
        record.prompt_text, record.output_token_texts, record.prompt_tokens, position
    )
