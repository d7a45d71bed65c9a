"""A serving process's way to workers over a Kafka topic; nothing comes back."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from nae_monitor.alert import kafka_probe
from nae_monitor.alert.kafka_address import check
from nae_monitor.alert.kafka_producer import connect, discard, unknown_topics
from nae_monitor.alert.kafka_security import problems_of_security
from nae_monitor.errors import Mark, Problem
from nae_monitor.health import Health
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.placement.carrier import Captured, Destination
from nae_monitor.placement.frame import Frame, FrameError, Kind, pack
from nae_monitor.placement.greetings import Hello
from nae_monitor.placement_settings import ActivationsSettings

DELIVERY_S = 10.0  # within which a record is acknowledged or given up
OVERDUE_S = 15.0  # a record older than that: the producer hangs, and another is made
SETTLE_S = 2.0  # within which a broker that is there has answered
RETRY_S = 0.25  # between looks for a broker
CLOSE_S = 1.0
PLACE = Mark("activations")
AWAY = "no broker has answered yet"
NUMBERED_TURNS = 20_000  # whose frames are counted; the oldest is forgotten first
PROCESS_HEADER = "nae_process"


class Topic:
    """One producer, built in the thread that uses it. Implements ``Carrier`` and ``Destination``.

    A record is one frame about one turn; its key is the turn's session, or its batch, so that a
    partition holds it whole, in order, and its ``sequence`` counts the frames of that turn. BEGIN
    also holds ``captured``: what HELLO says over ipc. Records on their way are bounded here, since
    the client's own buffer is not. One that is not acknowledged ends the topic's life: turns under
    way begin anew, and are undecided.
    """

    answers = False

    def __init__(
        self,
        captured: Captured,
        settings: ActivationsSettings,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._captured = captured
        self._settings = settings
        self._address = settings.connection
        self._health = health
        self._clock = clock
        self._circuit = Circuit("activations", health, clock)
        self.life = 0
        self.source = ""
        self.why = AWAY
        self._producer: Any = None
        self._opened_s = clock()
        self._life_at_open = 0

    # -- Carrier --------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to connect; a forked child leaves its parent's producer alone."""
        self._opened_s = self._tried_s = self._clock()
        self.why, self._life_at_open = self._refusal() or AWAY, self.life
        self._process = uuid.uuid4().hex
        self._lock = threading.Lock()  # the producer's thread calls back
        self._sent_s: OrderedDict[int, float] = OrderedDict()  # records on their way
        self._failed = 0
        self._record = 0
        self._frames: OrderedDict[int, int] = OrderedDict()  # by turn
        self._producer = None
        self._connect()

    def close(self) -> None:
        """Wait shortly for what is on its way."""
        if self._producer is not None:
            end_s = self._clock() + CLOSE_S
            while self._on_their_way() and self._clock() < end_s:
                time.sleep(0.01)
            self._end(CLOSE_S)

    def poll(self) -> list[tuple[Destination, Frame]]:
        """Look after the producer; nothing comes back over a topic."""
        now_s = self._clock()
        with self._lock:
            failed, self._failed = self._failed, 0
            oldest_s = next(iter(self._sent_s.values()), now_s)
        if failed:
            self._health.count("activations.lost_frames", failed)
            self._lose("records were not acknowledged")
        if now_s - oldest_s > OVERDUE_S:
            self._health.count("activations.lost_frames", self._on_their_way())
            self._end(0.0)
            self._lose("the broker does not acknowledge")
        if not self.is_ready and now_s - self._tried_s >= RETRY_S:
            self._tried_s = now_s
            self._connect()
        return []

    def choose(self, key: str) -> Destination | None:
        """The topic, where a broker answers."""
        return self if self.is_ready else None

    @property
    def is_settling(self) -> bool:
        """Whether a broker may yet answer."""
        opened_for_s = self._clock() - self._opened_s
        is_first = self.life == self._life_at_open
        return not self.is_ready and is_first and opened_for_s < SETTLE_S

    def faults(self) -> dict[str, str]:
        """Whether the broker is there."""
        if self.is_settling:
            return {}
        return {"activations": self.why}

    def states(self) -> dict[str, str]:
        """Of the topic: ready, or away and why."""
        name = f"kafka {self._settings.bootstrap} {self._settings.topic}"
        return {name: f"away: {self.why}" if self.why else "ready"}

    def is_answered(self) -> bool:
        """Whether the broker has told of the topic."""
        return self.is_ready

    def unsafe(self) -> list[str]:
        """Whether the address can be one at all, and the secrets and certificates are there."""
        return [str(problem) for problem in unsafe_connection(self._settings)]

    # -- Destination ----------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether a broker answers and has the topic."""
        return not self.why

    def send(self, kind: Kind, header: dict[str, Any], body: bytes = b"", key: str = "") -> bool:
        """Hand a frame to the producer; False where as many as may be are on their way."""
        if not self.is_ready or self._on_their_way() >= self._settings.in_flight_frames:
            return False
        turn = header["turn"]
        if kind is Kind.BEGIN:
            known = self._captured
            hello = Hello(self._process, known.model, known.layer, known.d_model)
            header = {**header, "captured": hello.header()}
            self._frames[turn] = 0
            while len(self._frames) > NUMBERED_TURNS:
                self._frames.popitem(last=False)
        sequence = self._frames.get(turn, 0)
        data = pack(kind, header, body, sequence=sequence)
        limit_bytes = self._settings.max_message_bytes
        if kind is Kind.BEGIN and len(data) > limit_bytes:
            # A very long prompt must not keep its rows from being judged; its text is unknown then.
            data = pack(kind, {**header, "prompt_left_out": True}, sequence=sequence)
            self._health.count("activations.prompts_left_out")
        if len(data) > limit_bytes:
            raise FrameError("longer than activations.max_message_bytes")
        if not self._hand_over(key.encode("utf-8", "replace"), data):
            return False
        if kind is Kind.END:
            self._frames.pop(turn, None)
        else:
            self._frames[turn] = sequence + 1
        return True

    def _hand_over(self, key: bytes, data: bytes) -> bool:
        self._record += 1
        record = self._record
        with self._lock:
            self._sent_s[record] = self._clock()
        handed = False
        with self._circuit.guard():
            future = self._producer.send(
                self._settings.topic,
                key=key,
                value=data,
                headers=[(PROCESS_HEADER, self._process.encode("ascii"))],
            )
            future.add_both(lambda *_: self._settled(record, future.succeeded()))
            handed = True
        if not handed:
            with self._lock:
                self._sent_s.pop(record, None)
        return handed

    def _settled(self, record: int, delivered: bool) -> None:
        """On the producer's thread: a record was acknowledged, or given up."""
        with self._lock:
            known = self._sent_s.pop(record, None) is not None
            self._failed += known and not delivered

    def _on_their_way(self) -> int:
        with self._lock:
            return len(self._sent_s)

    def _refusal(self) -> str:
        """Why brokers that are there will not let this client in; "" where nothing is known."""
        if self._address.tls is None and self._address.sasl is None:
            return ""
        found = self._circuit.call(lambda: kafka_probe.problems_of(self._address, PLACE))
        return "; ".join(problem.message for problem in found or ())

    def _connect(self) -> None:
        topic = self._settings.topic
        with self._circuit.guard():
            if self._producer is None:
                self._producer = connect(self._address, [topic], DELIVERY_S)
            if unknown_topics(self._producer, [topic]):
                self.why = self.why or "the broker does not tell of the topic"
            else:
                self.why = ""
                self.life += 1

    def _lose(self, why: str) -> None:
        """What was sent may be lost: whoever is under way begins anew."""
        if self.is_ready:
            self.why = why
            self._tried_s = -1e9

    def _end(self, timeout_s: float) -> None:
        producer, self._producer = self._producer, None
        with self._lock:
            self._sent_s.clear()
        if producer is not None:
            discard(producer, timeout_s)


def unsafe_connection(settings: ActivationsSettings) -> list[Problem]:
    """What is wrong with addresses, secrets and certificates, without asking the network."""
    address = settings.connection
    return check(address, PLACE) or problems_of_security(address, PLACE)
