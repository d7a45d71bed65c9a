"""A pipeline driven by hand: the test plays the tap; decoder, judge and sink are doubles."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nae_monitor.decode.support import SupportCalibration
from nae_monitor.detect import Judge, RuleSet
from nae_monitor.health import Health
from nae_monitor.pipeline import Listener, Pipeline
from nae_monitor.records import (
    Activation,
    Choice,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    RowBatch,
    SampleReason,
    Severity,
    Transcript,
    Verdict,
)
from nae_monitor.settings import (
    BudgetSettings,
    CacheSettings,
    CaptureSettings,
    DecodeSettings,
    NlaSettings,
    PolicySettings,
    PrivacySettings,
    ScreenSettings,
    Settings,
    TargetSettings,
)
from nae_monitor.testing import FakeDecoder, ListSink, ManualClock
from nae_monitor.token_text import TokenText
from nae_monitor.verdicts import fold_verdicts

D_MODEL, LAYER = 4, 2
BEFORE_SCREEN = frozenset(
    {
        "not_captured", "screen_failed", "screen_circuit_open", "unknown_request", "closed",
    }
)  # fmt: skip


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + token_id % 26) for token_id in token_ids)


class ChooseAll:
    """Buys every row, or those that ``wanted`` names by position."""

    def __init__(self, wanted: Callable[[int], bool] = lambda position: True) -> None:
        self.wanted = wanted
        self.calls = 0

    def choose(self, batch: RowBatch) -> list[Choice]:
        self.calls += 1
        places = [i for i, position in enumerate(batch.positions) if self.wanted(position)]
        return [Choice(row, SampleReason.EVERY_N) for row in places]


class Scripted:
    """Raises what is put into ``faults``, one a call, and otherwise does as the real one."""

    def __init__(self) -> None:
        self.faults: list[BaseException | None] = []
        self.calls = 0

    def step(self) -> None:
        self.calls += 1
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault


class ScriptedScreen(Scripted):
    def choose(self, batch: RowBatch) -> list[Choice]:
        self.step()
        return ChooseAll().choose(batch)


class ScriptedDecoder(Scripted, FakeDecoder):
    """Also waits for ``released`` before it answers."""

    def __init__(self) -> None:
        Scripted.__init__(self)
        FakeDecoder.__init__(self, D_MODEL, LAYER)
        self.released = threading.Event()
        self.released.set()
        self.entered = threading.Event()

    def decode(
        self, vectors: torch.Tensor, *, seeds: Sequence[int] | None = None
    ) -> list[Decoding]:
        self.entered.set()
        self.released.wait(240)
        self.step()
        return FakeDecoder.decode(self, vectors)


class ScriptedJudge(Scripted):
    """Matches where the explanation names coordinate 0; undecided where it names 1."""

    def __init__(self) -> None:
        super().__init__()
        self.transcripts: dict[tuple[str, int], Transcript] = {}

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        self.step()
        request_id, position = activation.request.request_id, activation.position
        self.transcripts[request_id, position] = transcript
        states = {
            "coordinate 0": FindingState.MATCH,
            "coordinate 1": FindingState.UNDECIDED,
        }
        if decoding.text not in states:
            return ()
        state = states[decoding.text]
        return (Finding(request_id, position, "rule", "rule", "1", "Rule", Severity.HIGH, state),)


class ScriptedSink(Scripted, ListSink):
    def __init__(self) -> None:
        Scripted.__init__(self)
        ListSink.__init__(self)

    def emit(self, alert: Any) -> None:
        self.step()
        ListSink.emit(self, alert)


class Bench:
    """Everything around one pipeline."""

    def __init__(
        self,
        *,
        screen: Any = None,
        open_recorder: Any = None,
        observer: Any = None,
        tokenizer: Any = None,
        rules: RuleSet | None = None,
        on_decision: Any = None,
        budget: BudgetSettings | None = None,
        clock: ManualClock | None = None,
        support: SupportCalibration | None = None,
        **changes: Any,
    ) -> None:
        """With ``rules`` the judge is the real one."""
        sections = {
            "target": TargetSettings("bench"),
            "nla": NlaSettings(batch_size=4),
            "capture": CaptureSettings(min_position=0),
            "screen": ScreenSettings(expire_s=60.0, budget=budget or BudgetSettings()),
            # Benches hand in any rows behind the same tokens, and count what is decoded.
            "decode": DecodeSettings(CacheSettings(prefix=False)),
            "privacy": PrivacySettings("full"),
            "policy": PolicySettings(),
            **changes,
        }
        self._requests: dict[str, Request] = {}
        self.clock = clock or ManualClock()
        self.health = Health()
        self.screen = screen or ChooseAll()
        self.decoder = ScriptedDecoder()
        self.judge: Any = ScriptedJudge() if rules is None else Judge(rules, None, self.health)
        self.sink = ScriptedSink()
        self.pipeline = Pipeline(
            Settings(**sections),
            self.health,
            screen=self.screen,
            decoder=self.decoder,
            judge=self.judge,
            sinks=self.sink,
            open_recorder=open_recorder,
            observer=observer,
            clock=self.clock,
            rules=lambda: rules or RuleSet.of(()),
            on_decision=on_decision,
            support=support,
        )
        self.listener: Listener = self.pipeline.listener(TokenText(tokenizer or Letters()))

    def start(
        self,
        request_id: str,
        prompt_tokens: int = 3,
        group_id: str | None = None,
        session_id: str | None = None,
    ) -> None:
        request = Request(request_id, group_id or request_id, "bench", session_id)
        self._requests[request_id] = request
        self.listener.request_started(request, tuple(range(prompt_tokens)))

    def rows(
        self,
        request_id: str,
        positions: Sequence[int],
        coordinate: int = 3,
        phase: Phase = Phase.PROMPT,
        group_id: str | None = None,
    ) -> None:
        """Deliver rows whose largest coordinate is ``coordinate``; counts them as seen."""
        self.vectors(
            request_id, positions, torch.eye(D_MODEL)[coordinate].repeat(len(positions), 1),
            phase, group_id,
        )  # fmt: skip

    def vectors(
        self,
        request_id: str,
        positions: Sequence[int],
        vectors: torch.Tensor,
        phase: Phase = Phase.PROMPT,
        group_id: str | None = None,
    ) -> None:
        self.health.count("tokens.seen", len(positions), request_id=request_id)
        self.listener.rows(
            RowBatch(
                requests=(
                    self._requests.get(request_id)
                    or Request(request_id, group_id or request_id, "bench"),
                ),
                request_index=(0,) * len(positions),
                positions=tuple(positions),
                token_ids=tuple(positions),
                phases=(phase,) * len(positions),
                layer=LAYER,
                vectors=vectors,
            )
        )

    def finish(self, request_id: str) -> None:
        self.listener.request_finished(request_id)

    def one(self, request_id: str, positions: Sequence[int] = (0, 1, 2), **row: Any) -> Verdict:
        """A whole request of one batch; its verdict."""
        self.start(request_id)
        self.rows(request_id, positions, **row)
        self.finish(request_id)
        return self.verdict(request_id)

    def verdict(self, request_id: str, wait_s: float = 20.0) -> Verdict:
        return fold_verdicts(request_id, self.pipeline.verdict(request_id, wait_s))

    def counter(self, name: str) -> int:
        return self.health.counters().get(name, 0)

    def settled(self) -> None:
        """Wait until the background thread has nothing in hand."""
        worker = self.pipeline._worker
        wait_until(lambda: not len(self.pipeline._queue) and not worker.in_hand)
        with self.pipeline._gate.passing():  # what follows from a row passes behind it
            pass

    def blind_alerts(self) -> list[str]:
        return [a.title for a in self.sink.alerts if a.rule_name == "monitor_blind"]


def wait_until(condition: Callable[[], bool], wait_s: float = 120.0) -> None:
    end_s = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.002)


def ledger_faults(coverage: Coverage) -> list[str]:
    """What does not add up in a finished request's ledger."""
    before = sum(n for r, n in coverage.dropped_tokens.items() if r in BEFORE_SCREEN)
    after = sum(n for r, n in coverage.dropped_tokens.items() if r not in BEFORE_SCREEN)
    faults = []
    if coverage.seen_tokens != (
        coverage.screened_tokens + coverage.excluded_tokens + coverage.cached_tokens + before
    ):
        faults.append(f"before the screen: {coverage}")
    if coverage.sampled_tokens != coverage.judged_tokens + after:
        faults.append(f"after the screen: {coverage}")
    return faults
