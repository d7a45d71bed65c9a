"""A worker's socket: serving processes come, tell of their turns, and go."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from nae_monitor.health import Health
from nae_monitor.pipeline.circuit import Circuit
from nae_monitor.placement.bell import Bell
from nae_monitor.placement.carrier import Captured
from nae_monitor.placement.endpoint import bound, claim
from nae_monitor.placement.frame import (
    SEQUENCE_MODULUS,
    VERSION,
    Frame,
    FrameError,
    Kind,
    VersionError,
    pack,
    unpack,
)
from nae_monitor.placement.greetings import Hello, Welcome
from nae_monitor.placement.link import BEATS
from nae_monitor.placement.reception import Guest
from nae_monitor.placement_settings import IpcSettings

POLL_MS = 100  # between looks at who has gone; frames and answers end the wait
RETRY_MS = 20  # the same while an answer waits for room
FAREWELL_S = 1.0  # for guests to read the last answers
LAST_CALL_S = 1.0  # for the frames that had arrived when a worker was told to end
READ_FRAMES = 256  # in one go
MAX_GUESTS = 256
MAX_ANSWERS = 100_000  # waiting for room; more are dropped and counted


class Turns(Protocol):
    """What is done with frames about turns; see :class:`Reception`."""

    def take(self, guest: Guest, frame: Frame) -> None:
        """A frame about a turn; FrameError where it is not as it should be."""
        ...

    def torn(self, guest: Guest) -> None:
        """Frames of a guest went missing."""
        ...

    def leave(self, guest: Guest, finished_unix_ns: int) -> None:
        """A guest is gone."""
        ...


@dataclass(eq=False, slots=True)
class _Visit:
    """A guest at its address, from greeting to end."""

    address: bytes
    guest: Guest
    heard_s: float
    read: int = 1  # frames, the greeting included
    sent: int = 0


class Receiver:
    """Binds one endpoint. :meth:`answer` may be called from any thread, the rest from one.

    Raises:
        ConfigurationError: the endpoint is in use, or its directory is not private.
    """

    def __init__(
        self,
        endpoint: str,
        captured: Captured,
        nla_id: str,
        settings: IpcSettings,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = uuid.uuid4().hex
        self._endpoint = endpoint
        self._captured = captured
        self._nla_id = nla_id
        self._settings = settings
        self._health = health
        self._clock = clock
        self._circuit = Circuit("ipc.receiver", health, clock)
        self._visits: dict[bytes, _Visit] = {}
        self._answers: deque[tuple[Guest, Kind, dict[str, Any]]] = deque()
        self._beat_s = clock()
        self._taking = threading.Event()
        self._last_call = threading.Event()
        self._door_shut = threading.Event()
        self._lock = claim(endpoint)
        self._context = zmq.Context(1)
        self._socket = bound(self._context, endpoint, settings.high_water_frames)
        self._bell = Bell()
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._bell, zmq.POLLIN)
        self._turns: Turns | None = None

    # -- any thread -----------------------------------------------------------------------------

    def answer(self, guest: Guest, kind: Kind, header: dict[str, Any]) -> None:
        """Send a message to a guest, soon; dropped and counted where it is gone."""
        if len(self._answers) >= MAX_ANSWERS:
            self._health.count("ipc.answers_dropped")
            return
        self._answers.append((guest, kind, header))
        self._bell.ring()

    def guests(self) -> list[Guest]:
        """All serving processes that are here now."""
        return [visit.guest for visit in list(self._visits.values())]

    def take_no_more(self) -> None:
        """Take what has arrived by now, then turn away whoever greets and every further frame."""
        self._last_call.set()
        self._bell.ring()
        self._door_shut.wait(LAST_CALL_S)
        self._taking.clear()

    # -- the receiving thread -------------------------------------------------------------------

    def run(
        self,
        turns: Turns,
        stopping: threading.Event,
        beat: Callable[[], None],
    ) -> None:
        """Receive until ``stopping`` is set, then say goodbye and close the socket."""
        self._turns = turns
        self._taking.set()
        try:
            while not stopping.is_set():
                beat()
                self._wait()
                with self._circuit.guard():
                    self._step()
            with self._circuit.guard():
                self._flush()
                for visit in self._visits.values():
                    self._send(visit, Kind.BYE, {})
                self._see_off(set(self._visits))
        finally:
            self.close()

    def _wait(self) -> None:
        """Until a frame or an answer is there, or it is time to look after the guests."""
        beat_ms = int(1000 * self._settings.liveness_s / BEATS)
        most_ms = RETRY_MS if self._answers else max(1, min(POLL_MS, beat_ms))
        self._poller.poll(most_ms)
        self._bell.hush()

    def _see_off(self, addresses: set[bytes]) -> None:
        """Wait until each guest greets anew: then it has read all that was sent before."""
        end_s = self._clock() + FAREWELL_S
        while addresses and self._clock() < end_s:
            if self._socket.poll(RETRY_MS):
                address, *rest = self._socket.recv_multipart(zmq.NOBLOCK)
                with suppress(FrameError):
                    if rest and unpack(rest[-1]).kind is Kind.HELLO:
                        addresses.discard(address)

    def close(self) -> None:
        """Free the endpoint."""
        self._bell.close()
        self._socket.close(500)
        self._context.term()
        if self._lock is not None:
            self._lock.release()

    def _step(self) -> None:
        last_call = self._last_call.is_set()
        for _ in range(READ_FRAMES):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if last_call and not self._door_shut.is_set():
                    self._taking.clear()
                    self._door_shut.set()
                break
            self._receive(parts)
        self._flush()
        self._look_after()

    def _receive(self, parts: list[bytes]) -> None:
        address = parts[0]
        try:
            if len(parts) != 2:
                raise FrameError("a message has one part")
            frame = unpack(parts[1])
            if frame.kind is Kind.HELLO:
                self._greet(address, Hello.read(frame))
            else:
                self._hear(address, frame)
        except VersionError as error:
            self._health.count("ipc.refused")
            self._reject(
                address,
                f"the serving process speaks protocol version {error.version}, not {VERSION}",
            )
        except FrameError:
            self._health.count("ipc.malformed_frames")

    def _greet(self, address: bytes, hello: Hello) -> None:
        why = self._refusal(hello)
        if why:
            self._health.count("ipc.refused")
            self._reject(address, why)
            return
        for visit in list(self._visits.values()):  # it lost us, and begins anew
            if visit.address == address or visit.guest.process == hello.process:
                self._part(visit)
        visit = _Visit(address, Guest(hello.process), self._clock())
        self._visits[address] = visit
        self._send(visit, Kind.WELCOME, Welcome(self.name, self._nla_id).header())

    def _refusal(self, hello: Hello) -> str:
        mine = self._captured
        theirs = Captured(hello.model, hello.layer, hello.d_model)
        if not self._taking.is_set():
            return "the worker is ending"
        if len(self._visits) >= MAX_GUESTS:
            return f"the worker has {MAX_GUESTS} serving processes already"
        if theirs != mine:
            return (
                f"the worker reads width {mine.d_model} at layer {mine.layer} of "
                f"{mine.model}, the serving process captures width {theirs.d_model} at layer "
                f"{theirs.layer} of {theirs.model}"
            )
        return ""

    def _hear(self, address: bytes, frame: Frame) -> None:
        visit = self._visits.get(address)
        if visit is None:
            self._push(address, pack(Kind.STRANGER, {}))
            return
        visit.heard_s = self._clock()
        if frame.sequence != visit.read:
            self._health.count("ipc.frames_lost", (frame.sequence - visit.read) % SEQUENCE_MODULUS)
            self._of_turns.torn(visit.guest)
        visit.read = (frame.sequence + 1) % SEQUENCE_MODULUS
        if frame.kind is Kind.BYE:
            self._part(visit)
        elif frame.kind is not Kind.BEAT and self._taking.is_set():
            self._health.count("ipc.frames_taken")
            self._of_turns.take(visit.guest, frame)

    def _part(self, visit: _Visit) -> None:
        del self._visits[visit.address]
        self._of_turns.leave(visit.guest, time.time_ns())

    def _look_after(self) -> None:
        now_s, liveness_s = self._clock(), self._settings.liveness_s
        for visit in list(self._visits.values()):
            if now_s - visit.heard_s > liveness_s:
                self._health.count("ipc.guests_lost")
                self._part(visit)
        if now_s - self._beat_s >= liveness_s / BEATS:
            self._beat_s = now_s
            for visit in self._visits.values():
                self._send(visit, Kind.BEAT, {})

    def _flush(self) -> None:
        """Send what waits; what finds no room now is tried again."""
        present = {visit.guest: visit for visit in self._visits.values()}
        for _ in range(len(self._answers)):
            guest, kind, header = self._answers.popleft()
            visit = present.get(guest)
            if visit is None:
                self._health.count("ipc.answers_dropped")
            elif not self._send(visit, kind, header):
                self._answers.append((guest, kind, header))

    def _send(self, visit: _Visit, kind: Kind, header: dict[str, Any]) -> bool:
        if not self._push(visit.address, pack(kind, header, sequence=visit.sent)):
            return False
        visit.sent = (visit.sent + 1) % SEQUENCE_MODULUS
        return True

    def _reject(self, address: bytes, why: str) -> None:
        self._push(address, pack(Kind.REFUSED, {"reason": why}))

    def _push(self, address: bytes, data: bytes) -> bool:
        try:
            self._socket.send_multipart([address, data], zmq.NOBLOCK)
        except zmq.ZMQError:  # no room, or it is gone
            return False
        return True

    @property
    def _of_turns(self) -> Turns:
        if self._turns is None:
            raise RuntimeError("the receiver is not running")
        return self._turns
