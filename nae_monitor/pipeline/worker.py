"""The background thread: takes rows from the queue, has them decoded and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nae_monitor.byte_queue import ByteQueue
from nae_monitor.decode.support import Place, Recurrence
from nae_monitor.health import Health
from nae_monitor.pipeline.blindness import UNSEEN, Blindness
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.pipeline.decoding import Decoded, DecodeStage
from nae_monitor.pipeline.follow_ups import FollowUps
from nae_monitor.pipeline.gate import Gate
from nae_monitor.pipeline.outcomes import Outcomes
from nae_monitor.pipeline.ports import Clock, Judging, Observer
from nae_monitor.pipeline.turn import Ended, Row
from nae_monitor.records import Activation, Decoding, Finding, Transcript

IDLE_S = 0.5


class Worker:
    """Works off the queue until told to stop.

    What takes time (decode, judge) happens outside the gate; every effect happens inside it, and
    takes its item out of :attr:`in_hand`. So whoever shuts the gate finds there exactly what has
    come to nothing, and a decode that ends too late changes nothing.
    """

    def __init__(
        self,
        health: Health,
        *,
        queue: ByteQueue[Row | Ended],
        gate: Gate,
        decoding: DecodeStage,
        judge: Judging,
        recurrence: Recurrence,
        outcomes: Outcomes,
        follow_ups: FollowUps,
        blindness: Blindness,
        observer: Observer | None,
        batch_size: int,
        clock: Clock,
    ) -> None:
        self._queue = queue
        self._gate = gate
        self._decoding = decoding
        self._judge = judge
        self._recurrence = recurrence
        self._outcomes = outcomes
        self._follow_ups = follow_ups
        self._blindness = blindness
        self._observer = observer
        self._batch_size = batch_size
        self._steps = {
            name: Circuit(name, health, clock)
            for name in ("pipeline", "copy", "text", "support", "judge", "follow_ups", "observer")
        }
        self.renew()

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        self.in_hand: list[Row | Ended] = []
        self._recurrence.clear()
        self._stopping = False

    def stop(self) -> None:
        """Let :meth:`run` return when the queue is empty."""
        self._stopping = True
        self._queue.wake()

    def abandon(self) -> bool:
        """Give up what is being decoded; False where that cannot be done."""
        return self._decoding.abandon()

    def run(self) -> None:
        """The thread's work."""
        self._outcomes.begin()
        while not self._gate.is_shut and not (self._stopping and self._queue.is_spent()):
            self._queue.wait(IDLE_S)
            with self._gate.passing() as open_:
                if not open_:
                    return
                self.in_hand = self._queue.take(self._batch_size)
                idle = not self.in_hand
                if idle:
                    self._outcomes.idle()
            with self._steps["pipeline"].guard():
                self._work(list(self.in_hand))
            self._settle_rest()
            with self._steps["pipeline"].guard(), self._gate.passing() as open_:
                if open_:
                    self._blindness.report()

    def _work(self, items: Sequence[Row | Ended]) -> None:
        rows = [item for item in items if isinstance(item, Row)]
        decoded = self._decoding.decode([row for row in rows if self._has_arrived(row)])
        for row, reason in decoded.dropped:
            self._drop(row, reason)
        self._count_decoded(decoded)
        decodings = dict(self._supported(decoded.decodings))
        for item in items:  # in order: behind an end may be rows of the request's next turn
            if isinstance(item, Ended):
                self._end(item)
            elif item in decodings:
                self._judge_one(item, decodings[item])

    def _supported(self, decoded: Sequence[tuple[Row, Decoding]]) -> Sequence[tuple[Row, Decoding]]:
        """With the support that further texts of the same turn give; unknown where it fails."""
        places = [
            (Place(row.turn, row.activation.position, row.seed is not None), decoding)
            for row, decoding in decoded
        ]
        scored = self._steps["support"].call(lambda: self._recurrence.scored(places))
        if scored is None:
            return decoded
        return [(row, decoding) for (row, _), decoding in zip(decoded, scored, strict=True)]

    def _has_arrived(self, row: Row) -> bool:
        arrived = False
        with self._steps["copy"].guard():
            row.copy.wait()
            arrived = True
        if not arrived:
            self._drop(row, "copy_failed")
        return arrived

    def _count_decoded(self, decoded: Decoded) -> None:
        with self._gate.passing() as open_:
            if open_:
                for row, decoding in decoded.decodings:
                    self._outcomes.decoded(row, decoding)

    def _judge_one(self, row: Row, decoding: Decoding) -> None:
        with self._gate.passing() as open_:  # a turn's text belongs to who holds the gate
            if not open_:
                return
            activation, transcript = self._with_text(row)
        findings = self._steps["judge"].call(
            lambda: tuple(self._judge.judge(activation, decoding, transcript))
        )
        if findings is None:
            self._blindness.failed("judge", "it fails", activation.request)
            self._drop(row, "judge_failed")
            return
        self._blindness.works("judge")
        with self._gate.passing() as open_:
            if open_:
                self.in_hand.remove(row)
                # Before the outcome: the end of the turn waits for what follows.
                with self._steps["follow_ups"].guard():
                    self._follow_ups.judged(row, findings)
                self._outcomes.judged(row, activation, decoding, transcript, findings)
        self._observe(activation, decoding, findings)

    def _with_text(self, row: Row) -> tuple[Activation, Transcript]:
        turn, activation = row.turn, row.activation
        place = activation.position
        texts = self._steps["text"].call(
            lambda: (turn.token_text(place, activation.token_id), turn.transcript(place))
        )
        if texts is None:
            turn.text_known = False  # for the whole turn, as its record will say
            texts = "", turn.transcript(place)
        return replace(activation, token=texts[0]), texts[1]

    def _observe(
        self, activation: Activation, decoding: Decoding, findings: Sequence[Finding]
    ) -> None:
        step = self._steps["observer"]
        if self._observer is not None and not self._gate.is_shut and step.allows():
            with step.guard():
                self._observer(activation, decoding, findings)

    def _drop(self, row: Row, reason: str) -> None:
        with self._gate.passing() as open_:
            if open_:
                self.in_hand.remove(row)
                self._outcomes.dropped(row, reason)

    def _end(self, item: Ended) -> None:
        with self._gate.passing() as open_:
            if open_:
                self.in_hand.remove(item)
                if self._follow_ups.delays(item.turn):
                    return
                self._recurrence.ended(item.turn)
                self._outcomes.ended(item.turn)
        if item.turn.rows_seen:
            self._blindness.works(UNSEEN)

    def _settle_rest(self) -> None:
        """Nothing may vanish: what a fault of our own left over is dropped and counted."""
        for item in list(self.in_hand):
            with self._steps["pipeline"].guard():
                if isinstance(item, Row):
                    self._drop(item, "internal")
                else:
                    self._end(item)
