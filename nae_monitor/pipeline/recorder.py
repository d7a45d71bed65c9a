"""The recording as the pipeline keeps it: what could not be written is counted, never raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nae_monitor.health import Health
from nae_monitor.pipeline.blindness import Blindness
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.ports import Clock
from nae_monitor.pipeline.turn import Turn
from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import Activation, Decoding, Finding, Verdict
from nae_monitor.settings import Settings

COMPONENT = "record"


class Recorder:
    """Writes while it can. Each method tells whether everything was taken."""

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
        self._keeps_dropped = settings.record.keep == "candidates"
        self._keeps_tokens = settings.privacy.content == "full"
        self._health = health
        self._blindness = blindness
        self._circuit = Circuit(COMPONENT, health, clock)

    def renew(self) -> None:
        """Leave the files to the parent process; a forked child begins a recording of its own."""
        self._writer = None

    def begin(self) -> None:
        """Open a recording where a forked child has none yet."""
        if self._open_writer is not None and self._writer is None and self._circuit.allows():
            with self._circuit.guard():
                self._writer = self._open_writer()

    def activation(
        self, activation: Activation, decoding: Decoding | None, reason: str | None = None
    ) -> bool:
        """Keep a row, judged or dropped."""
        if decoding is None and not self._keeps_dropped:
            return True
        return self._try(
            "activations", 1, lambda w: w.write_activation(activation, decoding, reason)
        )

    def findings(self, findings: Sequence[Finding]) -> bool:
        """Keep findings."""
        return self._try("findings", len(findings), lambda w: w.write_findings(findings))

    def request(self, turn: Turn, verdict: Verdict) -> bool:
        """Keep a finished turn."""
        return self._try("requests", 1, lambda w: w.write_request(self._record(turn, verdict)))

    def tick(self) -> None:
        """Finish files that are due; for when there is nothing else to do."""
        self._try("rotations", 0, lambda w: w.tick())

    def close(self) -> bool:
        """Finish the recording; False where the disk refuses its end."""
        return self._try("endings", 1, lambda w: w.close())

    def _try(self, what: str, amount: int, write: Callable[[RecordingWriter], None]) -> bool:
        if self._open_writer is None:
            return True
        taken = False
        if self._writer is not None:
            with self._circuit.guard():
                write(self._writer)
                taken = True
        if taken:
            self._blindness.works(COMPONENT)
        else:
            self._health.count(f"record.lost_{what}", amount)
            self._blindness.failed(COMPONENT, "the recording cannot be written")
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
