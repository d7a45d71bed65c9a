"""A queue between generating threads and one background thread, and how the two end in order."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Protocol

from nae_monitor.health import Health
from nae_monitor.pipeline.assembly import Shared
from nae_monitor.pipeline.serving import Listener, ServingSide
from nae_monitor.pipeline.turn import Ended, Row, Turn
from nae_monitor.records import Verdict
from nae_monitor.token_text import TokenText

SHUT_WAIT_S = 1.0  # for one write to the disk that is under way at the deadline
ABANDON_WAIT_S = 5.0  # for a step of a decode that is under way behind the deadline
ABANDON_EACH_S = 0.05

_ALIVE: weakref.WeakSet[Belt] = weakref.WeakSet()


class Work(Protocol):
    """What the background thread does with the queue."""

    @property
    def in_hand(self) -> Sequence[Row | Ended]:
        """Taken from the queue, and nothing has come of it yet."""
        ...

    def run(self) -> None:
        """Work until told to stop and the queue is empty, or until the gate is shut."""
        ...

    def stop(self) -> None:
        """Let :meth:`run` return once there is nothing left to do."""
        ...

    def abandon(self) -> bool:
        """Give up what takes long and is under way; False where that cannot be done."""
        ...

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        ...


class Aftermath(Protocol):
    """What follows from things that nobody will work on any more; called behind the gate."""

    def dropped(self, row: Row, reason: str) -> None:
        """A chosen row comes to nothing."""
        ...

    def ended(self, turn: Turn) -> None:
        """Nothing more comes of a turn that is over."""
        ...

    def over(self, why: str) -> None:
        """Nothing comes any more at all."""
        ...

    def close(self) -> bool:
        """The last call; False where something was left undone."""
        ...

    def renew(self) -> None:
        """Hold nothing: for a forked child."""
        ...


class Belt:
    """Owns the queue and the thread of one pipeline, or of its half in a serving process.

    After ``fork`` the child's belt knows no request and starts its thread with the first one.

    Args:
        health: counts what happens and what does not.
        shared: the queue and what both of its sides work with.
        serving: fills the queue.
        work: empties it, in a thread of its own.
        aftermath: takes what is left when the belt ends.
    """

    def __init__(
        self,
        health: Health,
        shared: Shared,
        *,
        serving: ServingSide,
        work: Work,
        aftermath: Aftermath,
    ) -> None:
        self._health = health
        self._shared = shared
        self._queue = shared.queue
        self._gate = shared.gate
        self._requests = shared.requests
        self._blindness = shared.blindness
        self.brake = shared.brake
        self._worker = work
        self._outcomes = aftermath
        self._serving = serving
        self._result: bool | None = None  # of close; None: open
        self._thread: threading.Thread | None = None
        self._renew_locks()
        self._start_worker()
        _ALIVE.add(self)

    def listener(self, text: TokenText) -> Listener:
        """What a tap tells to; token ids become text by ``text``. Any number may be in use."""
        return Listener(self._serving, text)

    def verdict(self, request_id: str, wait_s: float) -> list[Verdict]:
        """See :meth:`Requests.verdicts`."""
        return self._requests.verdicts(request_id, wait_s)

    def close(self, deadline_s: float) -> bool:
        """Take no more rows, work off the queue for at most about ``deadline_s``, and end.

        What is left is counted as ``dropped.shutdown`` and recorded as such, the alerts of what
        was found go out, every request gets its verdict, and the recording is finished. A decode
        still under way is given up; one that cannot be touches nothing afterwards.

        Returns:
            True if nothing was left undone. A second call changes nothing and says the same.
        """
        with self._close_lock:
            if self._result is None:
                self._serving.stop()
                self._worker.stop()
                if self._thread is not None:
                    # Not join: one that Ctrl-C interrupts takes the thread for ended ever after.
                    self._worked_off.wait(max(0.0, deadline_s))
                self._end("shutdown", "the monitor closed before it finished")
                self._let_go()
            return bool(self._result)

    def _let_go(self) -> None:
        """Behind the gate: a thread that still computes would abort an interpreter that ends."""
        end_s = time.monotonic() + ABANDON_WAIT_S
        while self._thread is not None and not self._worked_off.is_set():
            # Again and again: between two decodes there is none to give up.
            if not self._worker.abandon() or time.monotonic() > end_s:
                return
            self._worked_off.wait(ABANDON_EACH_S)

    def _end(self, reason: str, why: str) -> None:
        with self._end_lock:
            if self._result is None:
                self.brake.release()
                self._result = self._account(reason, why)

    def _account(self, reason: str, why: str) -> bool:
        """Shut the gate and account for everything that is left behind it."""
        quiet = self._gate.shut(SHUT_WAIT_S)
        left = [*self._worker.in_hand, *self._queue.close()]
        ends, unscreened = self._serving.abandon()
        left += ends
        rows = [item for item in left if isinstance(item, Row)]
        if not quiet:  # a write hangs in the recording or a sink: both are left alone
            for row in rows:
                request_id = row.activation.request.request_id
                self._health.count(f"dropped.{reason}", request_id=request_id)
            self._requests.end(why)
            return False
        with self._health.guard("pipeline"):
            for row in rows:
                self._outcomes.dropped(row, reason)
            for item in left:
                if isinstance(item, Ended):
                    self._outcomes.ended(item.turn)
            self._blindness.report()
        with self._health.guard("pipeline"):
            self._outcomes.over(why)
        return self._outcomes.close() and not rows and not unscreened

    def _start_worker(self) -> None:
        if self._thread is None:
            with self._start_lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="nae-monitor", daemon=True)
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        over = False
        try:
            with self._health.guard("worker"):
                self._worker.run()
                over = True
        finally:
            try:
                if not over:
                    self._died()
            finally:
                self._worked_off.set()

    def _died(self) -> None:
        """SystemExit or the like came out of a stage, and nobody else would ever say so."""
        self._serving.stop()
        self._blindness.failed("worker", "its thread ended")
        self._end("worker_ended", "the background thread ended")
        self._result = False

    def _renew_locks(self) -> None:
        self._close_lock = threading.Lock()
        self._end_lock = threading.Lock()
        self._worked_off = threading.Event()
        self._start_lock = threading.Lock()

    def _renew(self) -> None:
        """In a forked child: the thread is gone, locks may be held, files are the parent's."""
        if self._result is not None:
            return
        for part in (self._gate, self._queue, self._requests, self._blindness):
            part.renew()
        self._serving.renew()
        self._worker.renew()
        self._outcomes.renew()
        self.brake.renew()
        self._renew_locks()
        self._thread = None


def _renew_in_child() -> None:
    for belt in list(_ALIVE):
        belt._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
