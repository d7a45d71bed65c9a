"""Puts the serving side, the queue and the background thread together, and ends them in order."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable

from nae_monitor.decode import Decoder
from nae_monitor.detect import RuleSet
from nae_monitor.health import Health
from nae_monitor.pipeline.assembly import (
    Given,
    Shared,
    build_outcomes,
    build_serving,
    build_worker,
)
from nae_monitor.pipeline.ports import AlertSink, Clock, Judging, Observer, OnDecision
from nae_monitor.pipeline.serving import Listener
from nae_monitor.pipeline.turn import Ended, Row
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import Verdict
from nae_monitor.screen import Screen
from nae_monitor.settings import Settings
from nae_monitor.token_text import TokenText

SHUT_WAIT_S = 1.0  # for one write to the disk that is under way at the deadline

_ALIVE: weakref.WeakSet[Pipeline] = weakref.WeakSet()


class Pipeline:
    """From captured rows to findings, alerts and verdicts; owns the queue and the thread.

    After ``fork`` the child's pipeline knows no request, writes a recording of its own, and
    starts its thread with the first request.

    Args:
        settings: the whole configuration.
        health: counts what happens and what does not.
        screen: chooses rows, in the serving thread.
        decoder: called from the background thread only.
        judge: as the decoder.
        rules: the rule set in force, for aggregation and suppression; none without it.
        sinks: take alerts; they stay the caller's to close, after :meth:`close`.
        open_recorder: opens a recording, once a process; the pipeline closes it.
        observer: sees every judged row.
        on_decision: is told what rules' actions ask for.
        clock: seconds, monotonic; for expiry and retries.

    Raises:
        ConfigurationError: the recording cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        *,
        screen: Screen,
        decoder: Decoder,
        judge: Judging,
        sinks: AlertSink,
        open_recorder: Callable[[], RecordingWriter] | None = None,
        observer: Observer | None = None,
        clock: Clock = time.monotonic,
        rules: Callable[[], RuleSet] = lambda: RuleSet.of(()),
        on_decision: OnDecision | None = None,
    ) -> None:
        given = Given(
            settings=settings,
            health=health,
            screen=screen,
            decoder=decoder,
            judge=judge,
            sinks=sinks,
            open_recorder=open_recorder,
            observer=observer,
            clock=clock,
            rules=rules,
            on_decision=on_decision,
        )
        shared = Shared(given)
        self._health = health
        self._queue = shared.queue
        self._gate = shared.gate
        self._requests = shared.requests
        self._blindness = shared.blindness
        self.brake = shared.brake
        self._outcomes = build_outcomes(given, shared)
        self._worker = build_worker(given, shared, self._outcomes)
        self._serving = build_serving(given, shared, self._start_worker)
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
        still under way touches nothing afterwards.

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
            return bool(self._result)

    def _end(self, reason: str, why: str) -> None:
        with self._end_lock:
            if self._result is None:
                self.brake.release()
                self._result = self._account(reason, why)

    def _account(self, reason: str, why: str) -> bool:
        """Shut the gate and account for everything that is left behind it."""
        quiet = self._gate.shut(SHUT_WAIT_S)
        left = [*self._worker.in_hand, *self._queue.close()]
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
        return self._outcomes.close() and not rows

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
        self._worker.renew()
        self._outcomes.renew()
        self.brake.renew()
        self._renew_locks()
        self._thread = None


def _renew_in_child() -> None:
    for pipeline in list(_ALIVE):
        pipeline._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_in_child)
