"""A worker's way in over a Kafka topic: one of a consumer group."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition

from nae_monitor.alert.kafka_address import servers
from nae_monitor.alert.kafka_producer import API_VERSION
from nae_monitor.alert.kafka_security import security
from nae_monitor.health import Health
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.placement.carrier import Captured
from nae_monitor.placement.contents import read_turn
from nae_monitor.placement.fields import Fields
from nae_monitor.placement.frame import Frame, FrameError, Kind, unpack
from nae_monitor.placement.greetings import Hello
from nae_monitor.placement.open_turns import OpenTurn, OpenTurns
from nae_monitor.placement.reception import Guest, Reception
from nae_monitor.placement.topic import PROCESS_HEADER
from nae_monitor.placement_settings import ActivationsSettings

POLL_MS = 100
POLL_RECORDS = 32  # of up to half a MiB of vectors each: less than the room that is kept free
COMMIT_S = 1.0
STALE_S = 600.0  # a turn of which nothing came for so long has lost its end
MAX_GUESTS = 4096  # serving processes remembered; the oldest without turns is forgotten first
RETRY_S = 1.0


class TopicReceiver:
    """Reads what partitions are assigned, and commits no turn before it is worked off.

    So a worker that is killed leaves its turns to the next one of the group, which reads them from
    their beginnings: each is judged at least once, and alerts of both have the same ids. Alerts
    that both give are repeats to their readers.
    """

    def __init__(
        self,
        captured: Captured,
        settings: ActivationsSettings,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = uuid.uuid4().hex
        self._captured = captured
        self._settings = settings
        self._health = health
        self._clock = clock
        self._guests: OrderedDict[str, Guest] = OrderedDict()
        self._open = OpenTurns()
        self._next: dict[TopicPartition, int] = {}  # offsets that are read next
        self._committed: dict[TopicPartition, int] = {}
        self._committed_s = 0.0
        self._circuit = Circuit("activations", health, clock)
        self._reception: Reception | None = None
        self._taking = threading.Event()

    def answer(self, guest: Guest, kind: Kind, header: dict[str, Any]) -> None:
        """A turn is worked off; there is nobody to tell."""
        if kind is Kind.OUTCOME:
            self._open.close(header["turn"])

    def guests(self) -> list[Guest]:
        """None that could be told anything."""
        return []

    def take_no_more(self) -> None:
        """Read no further; offsets of what is worked off are still committed."""
        self._taking.clear()

    def run(
        self,
        turns: Reception,
        stopping: threading.Event,
        beat: Callable[[], None],
    ) -> None:
        """Read until ``stopping`` is set, then commit and leave the group."""
        self._reception = turns
        self._taking.set()
        consumer: Any = None
        while not stopping.is_set():
            beat()
            went_well = False
            with self._circuit.guard():
                consumer = consumer or self._consumer()
                self._step(consumer, stopping)
                went_well = True
            if not went_well:
                self._discard(consumer)
                consumer = None
                stopping.wait(RETRY_S)
        with self._circuit.guard():
            if consumer is not None:
                self._commit(consumer)
        self._discard(consumer)

    def close(self) -> None:
        """Nothing is held outside :meth:`run`."""

    def _step(self, consumer: Any, stopping: threading.Event) -> None:
        if not self._taking.is_set():
            stopping.wait(POLL_MS / 1000)
            self._commit(consumer)
            return
        self._hold_back(consumer)
        found = consumer.poll(POLL_MS, max_records=POLL_RECORDS)
        for partition, records in found.items():
            for record in records:
                self._take(partition, record)
                self._next[partition] = record.offset + 1
        now_s = self._clock()
        if now_s - self._committed_s >= COMMIT_S:
            self._committed_s = now_s
            self._end_stale(now_s)
            self._commit(consumer)
            self._health.gauge("activations.lag_records", self._lag(consumer))

    def _hold_back(self, consumer: Any) -> None:
        """Leave records on the topic while the pipeline has enough to do; stay in the group."""
        if self._of_turns.is_crowded:
            consumer.pause(*consumer.assignment())
        elif consumer.paused():
            consumer.resume(*consumer.paused())

    def _take(self, partition: TopicPartition, record: Any) -> None:
        try:
            guest = self._guest(record)
            frame = unpack(record.value or b"")
            name = read_turn(frame)
            if frame.kind is Kind.BEGIN:
                self._begin(guest, name, frame, partition, record.offset)
            self._hand_on(guest, self._open.number(guest, name), frame)
            self._health.count("activations.frames_taken")
        except FrameError:
            self._health.count("activations.malformed_frames")

    def _begin(
        self, guest: Guest, name: int, frame: Frame, partition: TopicPartition, offset: int
    ) -> None:
        hello = Hello.read(
            Frame(Kind.HELLO, 0, Fields(frame.header).object("captured"), memoryview(b""))
        )
        if Captured(hello.model, hello.layer, hello.d_model) != self._captured:
            self._health.count("activations.refused")
            raise FrameError("captured from another model, layer or width")
        again = self._open.number(guest, name)
        if again in guest.turns:  # read again after the group was shared out anew
            self._of_turns.abandon(guest, again, time.time_ns())
        self._open.begin(guest, name, partition, offset, self._clock())

    def _hand_on(self, guest: Guest, number: int, frame: Frame) -> None:
        """Hand on a frame under our number of its turn."""
        if not self._open.hear(number, frame.sequence, self._clock()):
            self._health.count("activations.frames_missing")
            self._of_turns.torn(guest, number)
        try:
            self._of_turns.take(guest, replace(frame, header={**frame.header, "turn": number}))
        finally:
            if frame.kind is Kind.BEGIN and number not in guest.turns:
                # Malformed, or refused: nothing will be told of it, and its offset is not held.
                guest.refused.pop(number, None)
                self._open.close(number)

    def _guest(self, record: Any) -> Guest:
        values = [value for name, value in record.headers or () if name == PROCESS_HEADER]
        process = bytes(values[0] or b"").decode("ascii", "replace") if values else ""
        if not 0 < len(process) <= 64:
            raise FrameError("its record does not say of which process it is")
        guest = self._guests.get(process)
        if guest is None:
            guest = self._guests[process] = Guest(process)
        self._guests.move_to_end(process)
        for name in list(self._guests)[: max(0, len(self._guests) - MAX_GUESTS)]:
            self._of_turns.leave(self._guests.pop(name), time.time_ns())
        return guest

    def _end_stale(self, now_s: float) -> None:
        self._abandon(self._open.unheard_since(now_s - STALE_S))

    def _abandon(self, turns: Iterable[OpenTurn]) -> None:
        """No more comes of turns; each is open until it is worked off."""
        for turn in turns:
            if turn.number in turn.guest.turns:
                self._of_turns.abandon(turn.guest, turn.number, time.time_ns())
                self._health.count("activations.abandoned_turns")

    def revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Partitions go to another worker, which reads their open turns from the beginning."""
        gone = set(partitions)
        turns = self._open.of(gone)
        self._abandon(turns)
        for turn in turns:
            self._open.close(turn.number)
        for partition in gone:
            self._next.pop(partition, None)
            self._committed.pop(partition, None)

    def _commit(self, consumer: Any) -> None:
        """Up to the first turn of each partition that is not worked off."""
        held = self._open.first_offsets()
        due = {p: min(offset, held.get(p, offset)) for p, offset in self._next.items()}
        due = {p: offset for p, offset in due.items() if offset != self._committed.get(p)}
        if due:
            consumer.commit({p: OffsetAndMetadata(offset, "", -1) for p, offset in due.items()})
            self._committed.update(due)

    def _lag(self, consumer: Any) -> int:
        lag = 0
        for partition, offset in self._next.items():
            end = consumer.highwater(partition)
            lag += max(0, (end or offset) - offset)
        return lag

    def _consumer(self) -> Any:
        consumer = KafkaConsumer(
            **security(self._settings.connection),
            bootstrap_servers=servers(self._settings.bootstrap),
            client_id="nae-monitor-worker",
            group_id=self._settings.group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            api_version=API_VERSION,
            session_timeout_ms=int(self._settings.session_s * 1000),
            heartbeat_interval_ms=int(self._settings.session_s * 150),
            max_partition_fetch_bytes=4 * self._settings.max_message_bytes,
            reconnect_backoff_max_ms=1000,
        )
        consumer.subscribe([self._settings.topic], listener=_Revoked(self))
        return consumer

    def _discard(self, consumer: Any) -> None:
        """What it had read and was not worked off is read again, by whoever gets it."""
        if consumer is not None:
            with self._circuit.guard():
                consumer.close(autocommit=False)
        self.revoked(list(self._next))

    @property
    def _of_turns(self) -> Reception:
        if self._reception is None:
            raise RuntimeError("the receiver is not running")
        return self._reception


class _Revoked(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells a receiver which partitions it loses."""

    def __init__(self, receiver: TopicReceiver) -> None:
        self._receiver = receiver

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """They go to another worker."""
        self._receiver.revoked(revoked)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Reading begins at what was committed."""
