"""Which requests are under way, what was found in them, and the verdicts of finished ones."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nae_monitor.health import Health
from nae_monitor.pipeline.turn import Turn
from nae_monitor.records import Coverage, Finding, Request, Verdict, VerdictState
from nae_monitor.settings import PolicySettings
from nae_monitor.token_text import TokenText
from nae_monitor.verdicts import judge_request

LIVE_LIMIT = 10_000  # requests under way; one more and the oldest is given up
VERDICT_LIMIT = 10_000  # finished requests remembered; the oldest is forgotten first
STARTED = "requests.started"
_NOTHING = Coverage(0, 0, 0, 0, 0, 0, {})


@dataclass(slots=True)
class _Watched:
    """One request over all its turns."""

    request_id: str
    group_id: str
    turns: list[Turn] = field(default_factory=list)  # not concluded yet
    started: int = 0  # turns ever
    findings: list[Finding] = field(default_factory=list)
    told: int = 0  # of the findings, how many :meth:`Requests.conclude` has returned
    losses: Counter[str] = field(default_factory=Counter)
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Concluded:
    """What a request has come to, as one of its turns is worked off."""

    findings: tuple[Finding, ...]  # since the turn before
    losses: Mapping[str, int]  # of the request, all turns: reasons, and how often


@dataclass(slots=True)
class _Group:
    members: dict[str, None] = field(default_factory=dict)  # in the order they began
    forgot_some: bool = False


class Requests:
    """Thread-safe; memory is bounded by ``LIVE_LIMIT`` and ``VERDICT_LIMIT``.

    A verdict is there once every turn of the request was worked off; a further turn takes it
    back, and what was found and lost before stays found and lost.
    """

    def __init__(self, health: Health, policy: PolicySettings) -> None:
        self._health = health
        self._policy = policy
        self.renew()

    def renew(self) -> None:
        """Know nothing, with a lock of its own: for a forked child."""
        self._live: dict[str, _Watched] = {}
        self._done: dict[str, _Watched] = {}
        self._groups: dict[str, _Group] = {}
        self._over = False
        self._changed = threading.Condition()

    # -- the serving thread -----------------------------------------------------------------

    def started(self, request: Request, prompt_ids: tuple[int, ...], text: TokenText) -> Turn:
        """Begin a request, or a further turn of one; the turn."""
        request_id = request.request_id
        # Tokens in a cache that was filled out of sight have positions but no known ids.
        text_known = not self._health.counted("tokens.cached", request_id)
        turn = Turn(request, prompt_ids, text, text_known=text_known)
        with self._changed:
            watched = self._live.get(request_id) or self._join(request)
            running = [other for other in watched.turns if not other.finished_unix_ns]
            if running:  # rows and tokens of the two cannot be told apart
                watched.losses["its id was in use twice at once"] += 1
                for one in (*running, turn):
                    one.text_known = False
            watched.turns.append(turn)
            watched.started += 1
            watched.verdict = None
            if len(self._live) > LIVE_LIMIT:
                self._give_up(next(iter(self._live.values())), "too many requests were under way")
        self._health.count(STARTED, request_id=request_id)
        return turn

    def turn(self, request_id: str) -> Turn | None:
        """The turn that rows and tokens of ``request_id`` belong to now."""
        watched = self._live.get(request_id)
        turns = watched.turns[-1:] if watched is not None else []
        return turns[0] if turns and not turns[0].finished_unix_ns else None

    def turns(self, request_id: str) -> tuple[Turn, ...]:
        """The turns of ``request_id`` that are not worked off, the latest first."""
        watched = self._live.get(request_id)
        return tuple(watched.turns[::-1]) if watched is not None else ()

    def under_way(self) -> tuple[Turn, ...]:
        """Every turn that is not worked off."""
        with self._changed:
            return tuple(turn for watched in self._live.values() for turn in watched.turns)

    def generated(self, request_id: str) -> Turn | None:
        """Mark the end of a generation; its turn, None where there is none under way."""
        with self._changed:
            watched = self._live.get(request_id)
            for turn in watched.turns if watched else ():
                if not turn.finished_unix_ns:
                    turn.finished_unix_ns = time.time_ns()
                    return turn
        return None

    # -- the background thread, and whoever closes -------------------------------------------

    def found(self, turn: Turn, findings: Iterable[Finding]) -> None:
        """Keep findings."""
        with self._changed:
            watched = self._of(turn)
            if watched is not None:
                watched.findings.extend(findings)

    def lost(self, turn: Turn, why: str) -> None:
        """Keep a reason for which the request must not be called clean."""
        with self._changed:
            watched = self._of(turn)
            if watched is not None:
                watched.losses[why] += 1

    def losses(self, turn: Turn) -> dict[str, int]:
        """The reasons so far for which the turn's request is not clean, and how often each."""
        with self._changed:
            watched = self._of(turn)
            return {} if watched is None else dict(watched.losses)

    def lost_elsewhere(self, turn: Turn, losses: Mapping[str, int]) -> None:
        """Take over what another process knows of lost things; told twice they count once."""
        with self._changed:
            watched = self._of(turn)
            if watched is not None:
                watched.losses |= Counter(losses)

    def weighed(self, turn: Turn) -> Verdict:
        """What would be said of the turn's request if nothing more came."""
        with self._changed:
            watched = self._of(turn)
            if watched is None:
                return _unknown(turn.request.request_id, "it was given up before it finished")
            more = ("a further turn has begun",) if len(watched.turns) > 1 else ()
            return self._weigh(watched, *more)

    def conclude(self, turn: Turn) -> Concluded | None:
        """The turn is worked off; the last one of a request publishes its verdict.

        Returns:
            None where the request was given up before.
        """
        with self._changed:
            watched = self._of(turn)
            if watched is None:
                return None
            concluded = Concluded(tuple(watched.findings[watched.told :]), dict(watched.losses))
            watched.told = len(watched.findings)
            watched.turns.remove(turn)
            if not watched.turns:
                self._publish(watched, self._weigh(watched))
            return concluded

    def forget(self, request_id: str) -> None:
        """Drop a finished request; one under way stays."""
        with self._changed:
            watched = self._done.pop(request_id, None)
            if watched is not None:
                self._leave(watched)

    def end(self, why: str) -> None:
        """Nothing will be worked off any more: publish every request that is under way."""
        with self._changed:
            self._over = True
            for watched in list(self._live.values()):
                self._give_up(watched, why)
            self._changed.notify_all()

    # -- the user ---------------------------------------------------------------------------

    def verdicts(self, request_id: str, wait_s: float) -> list[Verdict]:
        """Verdicts of the sequences under ``request_id``, a group's or a sequence's own id.

        Waits at most ``wait_s`` until all are finished; then those under way are told as they
        stand, and never as clean. [] where the id is unknown.
        """
        end_s = time.monotonic() + wait_s
        with self._changed:
            while True:
                group = self._groups.get(request_id) or _Group({request_id: None})
                known = [self._live.get(m) or self._done.get(m) for m in group.members]
                found = [watched for watched in known if watched is not None]
                finished = bool(found) and all(w.verdict is not None for w in found)
                left_s = end_s - time.monotonic()
                if finished or left_s <= 0 or self._over:
                    break
                self._changed.wait(left_s)
            told = [w.verdict or self._weigh(w, "it is not finished") for w in found]
        if told and group.forgot_some:
            told.append(_unknown(request_id, "sequences of it were forgotten"))
        return told

    # -- under the lock -----------------------------------------------------------------------

    def _join(self, request: Request) -> _Watched:
        request_id, group_id = request.request_id, request.group_id
        watched = self._done.pop(request_id, None)
        if watched is not None and watched.group_id != group_id:
            self._leave(watched)
            watched.group_id = group_id
        watched = watched or _Watched(request_id, group_id)
        self._live[request_id] = watched
        self._groups.setdefault(group_id, _Group()).members[request_id] = None
        return watched

    def _leave(self, watched: _Watched) -> None:
        group = self._groups[watched.group_id]
        del group.members[watched.request_id]
        group.forgot_some = True
        if not group.members:
            del self._groups[watched.group_id]

    def _of(self, turn: Turn) -> _Watched | None:
        watched = self._live.get(turn.request.request_id)
        known = watched is not None and any(one is turn for one in watched.turns)
        return watched if known else None

    def _weigh(self, watched: _Watched, *reasons: str) -> Verdict:
        losses = [*reasons, *(f"{why} ({n} times)" for why, n in watched.losses.items())]
        if self._health.counted(STARTED, watched.request_id) < watched.started:
            losses.append("its ledger was forgotten: too many requests since")
        coverage = self._health.coverage(watched.request_id)
        return judge_request(watched.request_id, watched.findings, coverage, self._policy, losses)

    def _give_up(self, watched: _Watched, why: str) -> None:
        watched.turns.clear()
        watched.losses[why] += 1
        self._publish(watched, self._weigh(watched))

    def _publish(self, watched: _Watched, verdict: Verdict) -> None:
        watched.verdict = verdict
        del self._live[watched.request_id]
        self._done[watched.request_id] = watched
        while len(self._done) > VERDICT_LIMIT:
            self._leave(self._done.pop(next(iter(self._done))))
        self._changed.notify_all()


def _unknown(request_id: str, why: str) -> Verdict:
    return Verdict(request_id, VerdictState.UNDECIDED, (), _NOTHING, (why,))
