"""Rules that may change while a monitor runs: watched, validated, exchanged whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nae_monitor.detect.bounds import over_bytes
from nae_monitor.detect.calibration import Calibration
from nae_monitor.detect.directions import MAX_FILE_BYTES as MAX_DIRECTIONS_BYTES
from nae_monitor.detect.engine import Judge
from nae_monitor.detect.packs import RuleSet, load_rules
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.sources import found_files
from nae_monitor.detect.support import Reconstructing
from nae_monitor.errors import ConfigurationError, Problem
from nae_monitor.health import Health
from nae_monitor.records import Activation, Decoding, Finding, Transcript
from nae_monitor.strict_yaml import MAX_FILE_BYTES, read_regular_file

log = logging.getLogger("nae_monitor")

POLL_S = 2.0


class LiveRules:
    """The rule set in force, with its judge; looks for changes and exchanges both at once.

    A judgement under way ends under the rules it began with. Files that do not load change
    nothing: the last good set stays, ``rules.reload_failed`` is counted, and the log names the
    number of problems and never what a rule or a text says. ``problems`` holds them.

    Args:
        paths: as for :func:`~nae_monitor.detect.packs.load_rules`.
        encoder: for semantic selections.
        health: counts ``rules.reloaded`` and ``rules.reload_failed``.
        accept: looks at a new set before it is taken; raises ConfigurationError to refuse it.
        calibration: for percentiles, as for :class:`Judge`.
        reconstructor: for the support of what matched, as for :class:`Judge`.

    Raises:
        RuleError: the rules do not load at the start.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        encoder: Encoder | None = None,
        health: Health | None = None,
        *,
        accept: Callable[[RuleSet], None] = lambda rules: None,
        calibration: Calibration | None = None,
        reconstructor: Reconstructing | None = None,
    ) -> None:
        self._calibration, self._reconstructor = calibration, reconstructor
        self._paths = tuple(paths)
        self._encoder = encoder
        self._health = health or Health()
        self._accept = accept
        self._seen = snapshot(self._paths)
        self._judge = self._load()
        self._directions = self._direction_digests()
        self._polling = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.problems: str = ""  # of the last reload; empty where it went well
        self.loaded_unix_ns = time.time_ns()

    @property
    def rules(self) -> RuleSet:
        """The set in force."""
        return self._judge.rule_set

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        """As :meth:`Judge.judge`, by the set in force now."""
        return self._judge.judge(activation, decoding, transcript)

    def poll(self) -> bool:
        """Look for changes once, and take them if they load. True if the set was exchanged.

        Files that change while they are read are read again at the next poll.
        """
        with self._polling:
            now, directions = snapshot(self._paths), self._direction_digests()
            if now == self._seen and directions == self._directions:
                return False
            before = self.rules.fingerprint
            taken = False
            with self._health.guard("rules.reload"):
                taken = self._take()
            if snapshot(self._paths) == now:
                self._seen = now
            self._directions = self._direction_digests() if taken else directions
            return taken and self.rules.fingerprint != before

    def _direction_digests(self) -> tuple[str, ...]:
        """What the files hold now that the rules in force take directions from."""
        files = {d.file for rule in self.rules.rules for d in rule.directions()}
        return tuple(_digest(file, MAX_DIRECTIONS_BYTES).hex() for file in sorted(files))

    def _take(self) -> bool:
        try:
            judge = self._load()
        except ConfigurationError as error:
            self.problems = str(error)
            amount = len(error.problems) or 1
            self._health.count("rules.reload_failed")
            log.error("the rules changed and have %d problems; the last good set stays", amount)
            return False
        self._judge, self.problems, self.loaded_unix_ns = judge, "", time.time_ns()
        self._health.count("rules.reloaded")
        fingerprint = judge.rule_set.fingerprint[:16]
        log.warning("the rules changed: %d in force, %s", len(judge.rule_set), fingerprint)
        return True

    def _load(self) -> Judge:
        rules = load_rules(self._paths)
        self._accept(rules)
        return Judge(
            rules,
            self._encoder,
            self._health,
            calibration=self._calibration,
            reconstructor=self._reconstructor,
        )

    def start(self, poll_s: float = POLL_S) -> None:
        """Poll on a thread of its own until :meth:`stop`."""
        if self._thread is None:
            self._stopped.clear()
            self._thread = threading.Thread(
                target=self._watch, args=(poll_s,), name="nae-monitor-rules", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread; one that is loading ends after that."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=POLL_S)
            self._thread = None

    def _watch(self, poll_s: float) -> None:
        while not self._stopped.wait(poll_s):
            with self._health.guard("rules.watch"):
                self.poll()


def snapshot(paths: Sequence[str | Path]) -> str:
    """A digest of the rule files' names and contents; what cannot be read counts as such.

    Contents, because two writes within one tick of a file system's clock share their times.
    """
    digest = hashlib.sha256()
    problems: list[Problem] = []
    files = found_files(paths, problems)
    too_large = over_bytes(files)
    for file in files:
        digest.update(str(file).encode("utf-8", "surrogateescape") + b"\0")
        # Files that are too large together are not read to the end every few seconds.
        digest.update(_digest(file, 0 if too_large else MAX_FILE_BYTES))
    problems.extend(too_large)
    for problem in problems:
        digest.update(str(problem).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _digest(file: Path, max_bytes: int) -> bytes:
    try:
        return hashlib.sha256(read_regular_file(file, max_bytes + 1)).digest()
    except OSError:
        return b"unreadable"
