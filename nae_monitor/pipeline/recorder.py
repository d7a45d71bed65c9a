"""The recording as the pipeline keeps it: what could not be written is counted, never raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nae_monitor.health import Health
from nae_monitor.pipeline.blindness import Blindness
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.held_rows import HeldRow, HeldRows
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.turn import Turn
from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import Activation, Decoding, Finding, Stop, Verdict
from nae_monitor.settings import Settings


class Recorder:
    """Writes while it can. Each method tells whether everything was taken.

    A disk that keeps refusing is left alone but for a trial now and then (:class:`Circuit`).
    """

    def __init__(
        self,
        open_writer: Callable[[], RecordingWriter] | None,
        settings: Settings,
        health: Health,
        blindness: Blindness,
        clock: Clock,
    ) -> None:
        self._open_writer = open_writer
        self._writer = open_writer() if open_writer is not None else None
        self._keeps_dropped = settings.record.keep != "decoded"
        self._held = HeldRows() if settings.record.keep == "captured" else None
        self._keeps_tokens = settings.privacy.content == "full"
        self._health = health
        self._blindness = blindness
        self._lost = 0
        self._stops_lost = 0
        self._circuits = {
            what: Circuit(f"record.{what}", health, clock)
            for what in (
                "opening",
                "activations",
                "findings",
                "stops",
                "requests",
                "files",
                "ending",
            )
        }

    def renew(self) -> None:
        """Leave the files to the parent process; a forked child begins a recording of its own."""
        self._writer = None
        self._lost = self._stops_lost = 0
        if self._held is not None:
            self._held = HeldRows()

    def begin(self) -> None:
        """Open a recording where a forked child has none yet."""
        if self._open_writer is not None and self._writer is None:
            self._writer = self._circuits["opening"].call(self._open_writer)

    def dropped(self, activation: Activation, reason: str) -> bool:
        """Keep a row that came to nothing, if such rows are wanted."""
        if not self._keeps_dropped:
            return True
        return self._activation(HeldRow(activation, None, reason))

    def judged(
        self, activation: Activation, decoding: Decoding, findings: Sequence[Finding]
    ) -> bool:
        """Keep a judged row and what was found in it."""
        taken = self._activation(HeldRow(activation, decoding, None))
        return self.findings(findings) and taken

    def capture(self, turn: Turn) -> bool:
        """Keep the vectors of a turn, those seen already too; False where nothing is recorded."""
        if self._held is not None:
            for row in self._held.capture(turn.request.request_id):
                self._row(row)
        return self._open_writer is not None

    def _activation(self, row: HeldRow) -> bool:
        """Write a row, or hold it until a rule asks for it."""
        if self._open_writer is None or self._held is None:
            return self._row(row)
        if self._held.is_captured(row.activation.request.request_id):
            return self._row(row)
        let_go = self._held.hold(row)
        if let_go:
            self._health.count("record.let_go_activations", let_go)
        return True

    def _row(self, row: HeldRow) -> bool:
        what = (row.activation, row.decoding, row.reason)
        return self._write("activations", 1, lambda w: w.write_activation(*what))

    def findings(self, findings: Sequence[Finding]) -> bool:
        """Keep findings."""
        if not findings:
            return True
        return self._write("findings", len(findings), lambda w: w.write_findings(findings))

    def stop(self, stop: Stop) -> bool:
        """Keep a rule's wish to end a generation, or what came of it."""
        taken = self._write("stops", 1, lambda w: w.write_stops([stop]))
        self._stops_lost += not taken
        return taken

    def request(self, turn: Turn, verdict: Verdict) -> bool:
        """Keep a finished turn."""
        if self._held is not None:
            self._held.forget(turn.request.request_id)
        return self._write("requests", 1, lambda w: w.write_request(self._record(turn, verdict)))

    def tick(self) -> None:
        """Finish files that are due; for when there is nothing else to do."""
        self._write("files", 0, lambda w: w.tick())

    def close(self) -> bool:
        """Finish the recording; False where that or anything before it was refused."""
        lost = self._stops_lost
        return self._write("ending", 1, lambda w: w.close(stops_lost=lost)) and not self._lost

    def _write(self, what: str, amount: int, write: Callable[[RecordingWriter], None]) -> bool:
        """Whether it was taken; also True where nothing is to be recorded."""
        if self._open_writer is None:
            return True
        component, circuit = f"record.{what}", self._circuits[what]
        taken = False
        if self._writer is not None and (circuit.allows() or what == "ending"):
            with circuit.guard():
                write(self._writer)
                taken = True
        if taken:
            self._blindness.works(component)
        else:
            self._lost += amount
            self._health.count(f"record.lost_{what}", amount)
            self._blindness.failed(component, "the recording cannot be written")
        return taken

    def _record(self, turn: Turn, verdict: Verdict) -> RequestRecord:
        output_ids = tuple(turn.output_ids)
        output_texts = turn.output_texts()
        return RequestRecord(
            request=turn.request,
            prompt_text=turn.prompt_text,
            prompt_tokens=len(turn.prompt_ids),
            output_tokens=len(output_ids),
            coverage=verdict.coverage,
            state=verdict.state,
            reasons=verdict.reasons,
            prompt_token_ids=turn.prompt_ids,
            output_token_ids=output_ids,
            prompt_token_texts=turn.prompt_token_texts() if self._keeps_tokens else None,
            output_token_texts=None if output_texts is None else tuple(output_texts),
            finished_unix_ns=turn.finished_unix_ns,
        )
