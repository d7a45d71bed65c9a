"""What follows from the fate of a row or a turn: counters, verdicts, recording, alerts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from nae_monitor.alert import AlertFolder
from nae_monitor.detect import Correlator, Decider, Decision, RuleSet, Suppressor
from nae_monitor.health import Health
from nae_monitor.pipeline.acting import Acting
from nae_monitor.pipeline.brake import Brake
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.ports import AlertSink, Clock, OnConcluded
from nae_monitor.pipeline.recorder import Recorder
from nae_monitor.pipeline.requests import Requests
from nae_monitor.pipeline.turn import Row, Turn
from nae_monitor.records import Activation, Alert, Decoding, Evidence, Finding, Transcript

NOT_RECORDED = "the recording is incomplete"
NOT_AGGREGATED = "aggregation failed"


class Emitter:
    """Hands alerts to the sinks; one that a sink does not take is counted."""

    def __init__(self, sinks: AlertSink, health: Health, clock: Clock) -> None:
        self._sinks = sinks
        self._health = health
        self._circuit = Circuit("alert", health, clock)

    def __call__(self, alerts: Iterable[Alert]) -> None:
        """Emit each; never raises. One that no sink takes is counted by the sinks alone."""
        for alert in alerts:
            emitted, taken = False, True
            with self._circuit.guard():
                taken = self._sinks.takes(alert)
                self._sinks.emit(alert)
                emitted = True
            if taken or not emitted:
                self._health.count("alerts.emitted" if emitted else "alerts.lost")

    def takes(self, alert: Alert) -> bool:
        """Whether some sink takes it; yes where that cannot be told. Never raises."""
        taken = True
        with self._circuit.guard():
            taken = self._sinks.takes(alert)
        return taken


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
        rules: Callable[[], RuleSet],
        acting: Acting,
        brake: Brake,
        on_concluded: OnConcluded | None = None,
    ) -> None:
        self._on_concluded = on_concluded
        self._acting = acting
        self._brake = brake
        self._health = health
        self._rules = rules
        self._requests = requests
        self._recorder = recorder
        self._emit = emit
        self._new_folder: Callable[[], AlertFolder] = lambda: AlertFolder(nla_id, sequence=sequence)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._folder = self._new_folder()
        self._correlator = Correlator(self._rules, self._health)
        self._suppressor = Suppressor({})
        self._decider = Decider()

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        self._begin_anew()
        self._recorder.renew()

    def begin(self) -> None:
        """Before the first row of this process."""
        self._recorder.begin()

    def decoded(self, row: Row, decoding: Decoding) -> None:
        """A row has its decoding."""
        name = "tokens.reused" if decoding.reused else "tokens.decoded"
        self._health.count(name, request_id=row.activation.request.request_id)

    def dropped(self, row: Row, reason: str) -> None:
        """A chosen row comes to nothing."""
        activation = row.activation
        self._health.count(f"dropped.{reason}", request_id=activation.request.request_id)
        self._kept(row, self._recorder.dropped(activation, reason))
        self._brake.settled(row.turn, activation.position)

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
        try:
            findings = (*findings, *self._aggregated(row.turn, activation, findings))
            self._requests.found(row.turn, findings)
            self._decide(row.turn, findings)
        finally:  # whatever failed, no generation may wait for this row any longer
            self._brake.settled(row.turn, activation.position)
        try:
            self._fold(activation, decoding, transcript, findings)
        finally:  # a row that was judged is on record, whatever became of its alerts
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
                reused=decoding.reused,
            )
            self._send(self._unfinished(self._folder.add(finding, evidence, activation.request)))

    def _aggregated(
        self, turn: Turn, activation: Activation | None, findings: Sequence[Finding]
    ) -> tuple[Finding, ...]:
        """What aggregation rules say now; at the end of the turn without an activation."""
        found: tuple[Finding, ...] = ()
        done = False
        with self._health.guard("aggregation"):
            if activation is None:
                found = self._correlator.ended(turn.request)
            else:
                found = self._correlator.add(self._correlator.sample(activation, findings))
            done = True
        if not done:
            self._requests.lost(turn, NOT_AGGREGATED)
        return found

    def _decide(self, turn: Turn, findings: Sequence[Finding]) -> None:
        """Do or tell what the rules' actions ask for; each is guarded by itself."""
        decisions: Sequence[Decision] = ()
        with self._health.guard("actions"):
            decisions = self._decider.decide(self._rules(), findings)
        for decision in decisions:
            with self._health.guard("actions"):
                self._acting.act(turn, decision)

    def _send(self, alerts: Sequence[Alert]) -> None:
        """Emit what suppression lets through; all of it where suppression fails.

        What no sink takes opens no quiet period: a graver alert of the same rule may follow.
        """
        taken: list[Alert] = []
        untaken: list[Alert] = []
        for alert in alerts:
            (taken if self._emit.takes(alert) else untaken).append(alert)
        passed: Sequence[Alert] = taken
        if taken:
            with self._health.guard("suppression"):
                self._suppressor.use(self._rules().suppressions())
                passed = self._suppressor.let_through(taken)
                self._health.count("alerts.held_back", len(taken) - len(passed))
        self._emit([*passed, *untaken])

    def _unfinished(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Alerts that go out before their turn is over, with what is known of its stop."""
        told: list[Alert] = []
        for alert in alerts:
            turns = self._requests.turns(alert.request.request_id)
            told += self._acting.marked(turns[0], [alert]) if turns else [alert]
        return told

    def ended(self, turn: Turn) -> None:
        """Every row of a turn came to something."""
        try:
            closing = self._aggregated(turn, None, ())
            self._requests.found(turn, closing)
            self._decide(turn, closing)
            if not self._recorder.findings(closing):
                self._requests.lost(turn, NOT_RECORDED)
            self._decider.ended(turn.request.request_id)
            alerts = self._folder.finish(turn.request.request_id)
            self._send(self._acting.marked(turn, alerts))
            self._acting.ended(turn)
            if turn.stops_unrecorded:
                self._requests.lost(turn, NOT_RECORDED)
            if not self._recorder.request(turn, self._requests.weighed(turn)):
                self._requests.lost(turn, NOT_RECORDED)
        finally:
            concluded = self._requests.conclude(turn)
            if self._on_concluded is not None:
                with self._health.guard("concluded"):
                    self._on_concluded(turn, concluded)

    def over(self, why: str) -> None:
        """Nothing comes any more: tell what is known of every request under way."""
        self._send(self._unfinished(self._folder.finish_all()))
        for turn in self._requests.under_way():
            with self._health.guard("actions"):
                self._acting.ended(turn)
        untold = sum(self._suppressor.pending().values())
        if untold:
            self._health.count("alerts.findings_held_back_untold", untold)
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
