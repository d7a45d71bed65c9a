"""A serving process's connection to one worker: greeting, heartbeats, frames both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from nae_monitor.health import Health
from nae_monitor.placement.frame import (
    MAX_FRAME_BYTES,
    SEQUENCE_MODULUS,
    VERSION,
    Frame,
    FrameError,
    Kind,
    VersionError,
    pack,
    unpack,
)
from nae_monitor.placement.greetings import Hello, Welcome, read_reason
from nae_monitor.placement_settings import IpcSettings

GREET_S = 0.25  # between greetings of a worker that does not answer
BEATS = 5  # in the time after which silence means death
READ_FRAMES = 256  # in one go


class LinkState(StrEnum):
    """What a serving process knows of a worker."""

    AWAY = "away"
    READY = "ready"
    REFUSED = "refused"


class Link:
    """Never waits. For one thread, the one that called :meth:`open`.

    A link has lives: each begins when a worker answers the greeting and ends with the worker's
    silence, its word, a broken connection or a frame that went missing. What was told in one life
    is not known in the next.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Hello,
        settings: IpcSettings,
        health: Health,
        clock: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self.state = LinkState.AWAY
        self.why = "no worker has answered yet"  # not READY
        self.worker = ""  # of the latest life
        self.nla_id = ""
        self.life = 0
        self._hello = hello
        self._settings = settings
        self._health = health
        self._clock = clock
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: Any = None
        self._sent = self._read = 0  # frames of this life
        self._opened_s = clock()
        self._heard_s = self._greeted_s = self._beat_s = -1e9

    @property
    def is_ready(self) -> bool:
        """Whether a worker listens."""
        return self.state is LinkState.READY

    @property
    def answers(self) -> bool:
        """Outcomes and orders come back."""
        return True

    @property
    def is_fresh(self) -> bool:
        """Whether it is too early to miss an answer."""
        opened_for_s = self._clock() - self._opened_s
        return (
            self.state is LinkState.AWAY
            and not self.life
            and opened_for_s < self._settings.connect_s
        )

    @property
    def source(self) -> str:
        """Whose ledgers come from there: the worker of the latest life."""
        return self.worker

    def open(self, context: zmq.Context[Any]) -> None:
        """Connect, now or whenever somebody listens."""
        self._opened_s = self._clock()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, self._settings.high_water_frames)
        self._socket.setsockopt(zmq.RCVHWM, self._settings.high_water_frames)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for a worker that is not there
        self._socket.setsockopt(zmq.LINGER, 200)  # ms
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(self.endpoint)

    def close(self) -> None:
        """Say goodbye and disconnect."""
        if self._socket is None:
            return
        if self.state is LinkState.READY:
            self.send(Kind.BYE, {})
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._socket = None

    def send(self, kind: Kind, header: dict[str, Any], body: bytes = b"", key: str = "") -> bool:
        """Hand a frame to ZeroMQ; False where its queue is full or nobody is connected.

        All frames stay in order, so ``key`` means nothing here.

        Raises:
            FrameError: it is too long for a frame.
        """
        data = pack(kind, header, body, sequence=self._sent)
        try:
            self._connected().send(data, zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return False
        self._sent = (self._sent + 1) % SEQUENCE_MODULUS
        return True

    def poll(self) -> list[Frame]:
        """Look after the connection; the frames about turns that came in, in order."""
        frames: list[Frame] = []
        for data in self._incoming():
            self._heard_s = self._clock()
            try:
                frame = unpack(data)
                if self._take(frame):
                    frames.append(frame)
            except VersionError as error:
                self._refused(f"the worker speaks protocol version {error.version}, not {VERSION}")
            except FrameError:
                self._health.count("ipc.malformed_frames")
        if self._is_cut_off():
            self._lose("the connection broke")
        self._keep_up()
        return frames

    def _incoming(self) -> Iterator[bytes]:
        socket = self._connected()
        for _ in range(READ_FRAMES):
            try:
                yield socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _is_cut_off(self) -> bool:
        cut_off = False
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor)
            cut_off = True
        return cut_off

    def _take(self, frame: Frame) -> bool:
        """Whether a frame is about a turn; the others are dealt with here."""
        match frame.kind:
            case Kind.WELCOME:
                self._welcomed(Welcome.read(frame))
            case Kind.REFUSED:
                self._refused(read_reason(frame))
            case Kind.STRANGER:
                self._lose("the worker does not know this process any more")
                self._greeted_s = -1e9
            case Kind.BYE:
                self._lose("the worker ended in order")
            case _ if self.state is LinkState.READY:
                return self._is_next(frame) and frame.kind is not Kind.BEAT
        return False

    def _is_next(self, frame: Frame) -> bool:
        if frame.sequence != self._read:
            self._lose("frames from the worker were lost")
            return False
        self._read = (self._read + 1) % SEQUENCE_MODULUS
        return True

    def _welcomed(self, welcome: Welcome) -> None:
        self._read = 1
        if self.state is LinkState.READY and welcome.worker == self.worker:
            return
        self.worker, self.nla_id = welcome.worker, welcome.nla_id
        self.state, self.why = LinkState.READY, ""
        self.life += 1
        self._health.count("ipc.links_made")

    def _refused(self, why: str) -> None:
        if self.state is not LinkState.REFUSED:
            self._health.count("ipc.refused")
        self.state, self.why = LinkState.REFUSED, why

    def _lose(self, why: str) -> None:
        if self.state is LinkState.READY:
            self.state, self.why = LinkState.AWAY, why
            self._health.count("ipc.links_lost")

    def _keep_up(self) -> None:
        now_s = self._clock()
        liveness_s = self._settings.liveness_s
        if self.state is not LinkState.READY:
            if now_s - self._greeted_s >= GREET_S:
                self._greeted_s, self._sent = now_s, 0
                self.send(Kind.HELLO, self._hello.header())
        elif now_s - self._heard_s > liveness_s:
            self._lose(f"the worker has been silent for {liveness_s:g} s")
        elif now_s - self._beat_s >= liveness_s / BEATS and self.send(Kind.BEAT, {}):
            self._beat_s = now_s

    def _connected(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            raise RuntimeError("the link is not open")
        return self._socket
