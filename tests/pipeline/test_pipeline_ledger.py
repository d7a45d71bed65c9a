"""Whatever happens in whatever order: every token is accounted for, and clean means clean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_parts import D_MODEL, Bench, ChooseAll, Scripted, ledger_faults

from nae_monitor.errors import EngineError
from nae_monitor.records import Choice, RowBatch, VerdictState
from nae_monitor.settings import CaptureSettings, PolicySettings
from nae_monitor.verdicts import is_balanced

REQUESTS = st.sampled_from(["a", "b", "c"])
VECTORS = {
    "plain": 3.0 * torch.eye(D_MODEL)[3],
    "match": torch.eye(D_MODEL)[0],
    "undecided": torch.eye(D_MODEL)[1],
    "nan": torch.full((D_MODEL,), torch.nan),
    "zero": torch.zeros(D_MODEL),
}
FAULTS = [RuntimeError, EngineError, MemoryError, ValueError]

EVENTS = st.one_of(
    st.tuples(st.just("start"), REQUESTS),
    st.tuples(st.just("rows"), REQUESTS, st.lists(st.sampled_from([*VECTORS]), min_size=1)),
    st.tuples(st.just("rows"), REQUESTS, st.lists(st.just("plain"), min_size=1, max_size=8)),
    st.tuples(st.just("tokens"), REQUESTS, st.integers(1, 4)),
    st.tuples(st.just("excluded"), REQUESTS, st.integers(1, 4)),
    st.tuples(st.just("not captured"), REQUESTS, st.integers(1, 2)),
    st.tuples(st.just("finish"), REQUESTS),
    st.tuples(st.sampled_from(["decoder", "judge", "screen", "sink"]), st.sampled_from(FAULTS)),
    st.tuples(st.just("hold")),
    st.tuples(st.just("release")),
    st.tuples(st.just("clock"), st.sampled_from([1.0, 6.0, 61.0])),
)


class FaultyChooseAll(Scripted):
    def choose(self, batch: RowBatch) -> list[Choice]:
        self.step()
        return ChooseAll().choose(batch)


@dataclass
class Model:
    """What the test knows of a request without asking the monitor."""

    running: int = 0  # generations under way
    ever: bool = False
    plain: int = 0
    troubled: bool = False  # something was delivered that may not be called clean
    matches: int = 0
    position: int = 0
    started_twice: bool = False


@dataclass
class Play:
    """Plays events against a pipeline and keeps the model beside it."""

    bench: Bench
    models: dict[str, Model] = field(default_factory=lambda: {n: Model() for n in "abc"})
    faults: int = 0

    def event(self, kind: str, *args: Any) -> None:
        getattr(self, f"_{kind.replace(' ', '_')}", lambda *a: self._fault(kind, *a))(*args)

    def _start(self, name: str) -> None:
        model = self.models[name]
        if model.running:
            model.started_twice = True
        model.running += 1
        model.ever = True
        self.bench.start(name, prompt_tokens=2)

    def _rows(self, name: str, kinds: list[str]) -> None:
        model = self.models[name]
        places = range(model.position, model.position + len(kinds))
        model.position += len(kinds)
        vectors = torch.stack([VECTORS[kind] for kind in kinds])
        self.bench.vectors(name, places, vectors)
        model.plain += kinds.count("plain")
        model.matches += kinds.count("match")
        model.troubled |= not model.running or any(kind != "plain" for kind in kinds)

    def _tokens(self, name: str, amount: int) -> None:
        self.bench.listener.tokens(name, tuple(range(amount)))

    def _excluded(self, name: str, amount: int) -> None:
        for counter in ("tokens.seen", "tokens.excluded"):
            self.bench.health.count(counter, amount, request_id=name)

    def _not_captured(self, name: str, amount: int) -> None:
        for counter in ("tokens.seen", "dropped.not_captured"):
            self.bench.health.count(counter, amount, request_id=name)
        self.models[name].troubled = True

    def _finish(self, name: str) -> None:
        for _ in range(max(1, self.models[name].running)):
            self.bench.finish(name)
        self.models[name].running = 0

    def _fault(self, where: str, fault: type[Exception]) -> None:
        self.faults += 1
        part: Any = getattr(self.bench, where)
        part.faults.append(fault("never shown"))

    def _hold(self) -> None:
        self.bench.decoder.released.clear()

    def _release(self) -> None:
        self.bench.decoder.released.set()

    def _clock(self, seconds: float) -> None:
        self.faults += seconds > 60  # rows may expire
        self.bench.clock.advance(seconds)


@settings(max_examples=250, deadline=None)
@given(st.lists(EVENTS, max_size=25), st.booleans())
def test_every_token_is_accounted_for_and_clean_is_never_given_by_mistake(
    events: list[tuple[Any, ...]], small: bool
) -> None:
    capture = CaptureSettings(min_position=0, queue_bytes=6_000 if small else 10**8)
    bench = Bench(screen=FaultyChooseAll(), capture=capture)
    play = Play(bench)
    try:
        for kind, *args in events:
            play.event(kind, *args)
        bench.decoder.released.set()
        for name, model in play.models.items():
            if model.running:
                play.event("finish", name)
            if model.ever:
                check(bench, name, model, sure=not play.faults and not small)
    finally:
        bench.decoder.released.set()
        assert bench.pipeline.close(20.0)
    counters = bench.health.counters()
    assert counters.get("tokens.sampled", 0) == counters.get("tokens.decoded", 0) + sum(
        n
        for name, n in counters.items()
        if name.startswith(("dropped.bad", "dropped.dec", "dropped.eng", "dropped.exp"))
        or name == "dropped.queue_full"
    )


def check(bench: Bench, name: str, model: Model, *, sure: bool) -> None:
    verdict = bench.verdict(name)
    coverage = verdict.coverage
    assert not ledger_faults(coverage)
    assert is_balanced(coverage)
    if verdict.state is VerdictState.CLEAN:
        assert not model.troubled
        assert not model.started_twice
        assert not coverage.dropped_tokens
        assert not verdict.findings
        assert coverage.judged_tokens == model.plain >= PolicySettings().min_judged_tokens
    else:
        assert verdict.reasons or verdict.state is VerdictState.ALERT
    if sure:
        clean = model.plain > 0 and not model.troubled and not model.started_twice
        assert clean == (verdict.state is VerdictState.CLEAN)
        if model.matches and not model.troubled:
            assert verdict.state is VerdictState.ALERT
