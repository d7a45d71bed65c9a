"""What the pipeline needs of the stages it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from nae_monitor.detect import Decision
from nae_monitor.pipeline.requests import Concluded
from nae_monitor.pipeline.turn import Turn
from nae_monitor.records import Activation, Alert, Decoding, Finding, Transcript

Clock = Callable[[], float]  # seconds, monotonic

Observer = Callable[[Activation, Decoding, Sequence[Finding]], None]
"""Sees every judged row, on the background thread, which waits for it."""


OnDecision = Callable[[Decision], bool | None]
"""Is told what rules' actions ask for, on the background thread, which waits for it.

``enforced`` says whether it was carried out: for a stop, that the sequence was ordered to end.
A server of another kind aborts the request here, and says what came of it: True that the
generation was ended, False that it will not be (the order is then withdrawn), None that it is not
known yet; :meth:`nae_monitor.monitor.Monitor.confirm_stop` tells it later.
"""


OnConcluded = Callable[[Turn, Concluded | None], None]
"""Is told what each turn came to, on the background thread; None where it was given up before."""


class Judging(Protocol):
    """The judge as the pipeline sees it."""

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        """The findings for one decoding; see :class:`nae_monitor.detect.Judge`."""
        ...


class AlertSink(Protocol):
    """Where alerts go; see :class:`nae_monitor.alert.Sink` for the contract."""

    def emit(self, alert: Alert) -> None:
        """Take one alert without waiting."""
        ...

    def takes(self, alert: Alert) -> bool:
        """Whether it goes anywhere: an alert that does not must not silence one that would."""
        ...
