"""What replay needs from the decode and detect stages; the composer supplies both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from nae_monitor.detect import Sample
from nae_monitor.recording import RequestRecord
from nae_monitor.records import Activation, Decoding, Finding, Request, Transcript, VerdictState

Progress = Callable[[int, int], None]  # rows done, rows in all

Conclude = Callable[[RequestRecord, tuple[Finding, ...], int], tuple[VerdictState, tuple[str, ...]]]
"""The verdict of a replayed request: its record, its new findings, and how many of its rows
were dropped during replay; gives the state and, if undecided, why."""


class Decoder(Protocol):
    """The verbalizer with its fidelity scores, local or remote."""

    @property
    def nla_id(self) -> str:
        """Names the NLA pair, as in :attr:`Decoding.nla_id`."""

    @property
    def d_model(self) -> int:
        """Width of the vectors it reads."""

    @property
    def layer(self) -> int:
        """K: it reads ``hidden_states[K]``."""

    def decode(self, vectors: torch.Tensor) -> list[Decoding]:
        """Decode finite, nonzero vectors [n, d_model], float32 on the CPU; n results in order.

        May block as long as its own deadline lets it. An exception costs this batch only.
        """


class Judge(Protocol):
    """The rule engine."""

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        """The findings on one decoding; called in the order of (request id, position)."""


class Correlate(Protocol):
    """The aggregation rules; see :class:`nae_monitor.detect.Correlator`."""

    @property
    def across_requests(self) -> bool:
        """Whether samples of several requests bear on one answer."""

    def sample(self, activation: Activation, findings: Sequence[Finding]) -> Sample:
        """A judged row as aggregation sees it."""

    def add(self, sample: Sample) -> tuple[Finding, ...]:
        """The findings a sample leads to; called in the order of capture."""

    def ended(self, request: Request) -> tuple[Finding, ...]:
        """The findings at the end of a turn; called behind its last sample."""
