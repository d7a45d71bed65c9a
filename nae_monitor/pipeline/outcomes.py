"""What follows from the fate of a row or a turn: counters, verdicts, recording, alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from nae_monitor.alert import AlertFolder
from nae_monitor.health import Health
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.ports import AlertSink, Clock
from nae_monitor.pipeline.recorder import Recorder
from nae_monitor.pipeline.requests import Requests
from nae_monitor.pipeline.turn import Row, Turn
from nae_monitor.records import Activation, Alert, Decoding, Evidence, Finding, Transcript

NOT_RECORDED = "the recording is incomplete"


class Emitter:
    """Hands alerts to the sinks; one that a sink does not take is counted."""

    def __init__(self, sinks: AlertSink, health: Health, clock: Clock) -> None:
        self._sinks = sinks
        self._health = health
        self._circuit = Circuit("alert", health, clock)

    def __call__(self, alerts: Iterable[Alert]) -> None:
        """Emit each; never raises."""
        for alert in alerts:
            emitted = False
            with self._circuit.guard():
                self._sinks.emit(alert)
                emitted = True
            self._health.count("alerts.emitted" if emitted else "alerts.lost")


class Outcomes:
    """Draws the consequences. Callers see to it that one thread at a time is in here."""

    def __init__(
        self,
        health: Health,
        requests: Requests,
        recorder: Recorder,
        emit: Emitter,
        *,
        nla_id: str,
        sequence: Iterator[int],
    ) -> None:
        self._health = health
        self._requests = requests
        self._recorder = recorder
        self._emit = emit
        self._new_folder: Callable[[], AlertFolder] = lambda: AlertFolder(nla_id, sequence=sequence)
        self._folder = self._new_folder()

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        self._folder = self._new_folder()
        self._recorder.renew()

    def begin(self) -> None:
        """Before the first row of this process."""
        self._recorder.begin()

    def decoded(self, row: Row) -> None:
        """A row has its decoding."""
        self._health.count("tokens.decoded", request_id=row.activation.request.request_id)

    def dropped(self, row: Row, reason: str) -> None:
        """A chosen row comes to nothing."""
        activation = row.activation
        self._health.count(f"dropped.{reason}", request_id=activation.request.request_id)
        self._kept(row, self._recorder.dropped(activation, reason))

    def judged(
        self,
        row: Row,
        activation: Activation,
        decoding: Decoding,
        transcript: Transcript,
        findings: Sequence[Finding],
    ) -> None:
        """A row was judged; ``activation`` is the row's, with its token's text."""
        self._health.count("tokens.judged", request_id=activation.request.request_id)
        self._requests.found(row.turn, findings)
        self._fold(activation, decoding, transcript, findings)
        self._kept(row, self._recorder.judged(activation, decoding, findings))

    def _fold(
        self,
        activation: Activation,
        decoding: Decoding,
        transcript: Transcript,
        findings: Sequence[Finding],
    ) -> None:
        for finding in findings:
            evidence = Evidence(
                finding=finding,
                token=activation.token,
                phase=activation.phase,
                explanation=decoding.text,
                transcript=transcript,
                fve=decoding.fve,
                cosine=decoding.cosine,
            )
            self._emit(self._folder.add(finding, evidence, activation.request))

    def ended(self, turn: Turn) -> None:
        """Every row of a turn came to something."""
        try:
            self._emit(self._folder.finish(turn.request.request_id))
            if not self._recorder.request(turn, self._requests.weighed(turn)):
                self._requests.lost(turn, NOT_RECORDED)
        finally:
            self._requests.conclude(turn)

    def over(self, why: str) -> None:
        """Nothing comes any more: tell what is known of every request under way."""
        self._emit(self._folder.finish_all())
        self._requests.end(why)

    def idle(self) -> None:
        """Do what has been waiting for a quiet moment."""
        self._recorder.tick()

    def close(self) -> bool:
        """Finish the recording; False where that failed."""
        return self._recorder.close()

    def _kept(self, row: Row, taken: bool) -> None:
        if not taken:
            self._requests.lost(row.turn, NOT_RECORDED)
