"""Rows that need no decode of their own: who gets what, and that it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from pipeline_parts import D_MODEL, Bench, ledger_faults

from nae_monitor.records import (
    Activation,
    Decoding,
    Finding,
    Request,
    VerdictState,
)
from nae_monitor.screen import SamplingScreen
from nae_monitor.settings import (
    BudgetSettings,
    CacheSettings,
    DecodeSettings,
    ScreenSettings,
)

MakeBench = Callable[..., Bench]
HIT = 0


class Seen:
    def __init__(self) -> None:
        self.decodings: list[tuple[str, int, Decoding]] = []

    def __call__(self, a: Activation, decoding: Decoding, _: Sequence[Finding]) -> None:
        self.decodings.append((a.request.request_id, a.position, decoding))

    @property
    def reused(self) -> list[tuple[str, int]]:
        return [(name, place) for name, place, one in self.decodings if one.reused]


def caching(bench: MakeBench, seen: Seen | None = None, **changes: Any) -> Bench:
    return bench(decode=DecodeSettings(CacheSettings(**changes)), observer=seen)


def test_a_retry_is_judged_on_the_decodings_made_before(bench: MakeBench) -> None:
    seen = Seen()
    here = caching(bench, seen)
    first, second = here.one("a", coordinate=HIT), here.one("b", coordinate=HIT)
    assert here.decoder.decoded_rows == 3
    assert seen.reused == [("b", 0), ("b", 1), ("b", 2)]
    assert first.state is second.state is VerdictState.ALERT
    assert [len(v.findings) for v in (first, second)] == [3, 3]
    assert (second.coverage.decoded_tokens, second.coverage.reused_tokens) == (0, 3)
    assert ledger_faults(second.coverage) == []
    told = [here.counter(f"decode.cache.{name}") for name in ("prefix_hits", "misses")]
    assert told == [3, 3]


def test_alerts_say_that_their_evidence_was_made_for_another_row(bench: MakeBench) -> None:
    here = caching(bench)
    here.one("a", coordinate=HIT)
    here.one("b", coordinate=HIT)
    marked = {a.request.request_id: {e.reused for e in a.evidence} for a in here.sink.alerts}
    assert marked == {"a": {False}, "b": {True}}


def test_rows_of_one_batch_after_the_same_tokens_are_decoded_once(bench: MakeBench) -> None:
    seen = Seen()
    here = caching(bench, seen)
    here.decoder.released.clear()
    for name in ("a", "b", "c"):
        here.start(name)
    here.rows("a", [2])
    here.decoder.entered.wait(20)  # of "a" alone; the others are taken together
    here.rows("b", [1])
    here.rows("c", [1])
    here.decoder.released.set()
    for name in ("a", "b", "c"):
        here.finish(name)
        here.verdict(name)
    assert here.decoder.decoded_rows == 2
    assert len(seen.reused) == 1


def test_another_tenant_never_gets_it(bench: MakeBench) -> None:
    seen = Seen()
    here = caching(bench, seen, near_cosine=0.95)
    for name, tenant in (("a", "t1"), ("b", "t2"), ("c", None), ("d", "t1")):
        request = Request(name, name, "bench", tenant=tenant)
        here._requests[name] = request
        here.listener.request_started(request, (0, 1, 2))
        here.rows(name, [2])
        here.finish(name)
        here.verdict(name)
    assert seen.reused == [("d", 2)]


def test_unknown_tokens_are_no_prefix(bench: MakeBench) -> None:
    here = caching(bench)
    for name in ("a", "b"):
        here.start(name, prompt_tokens=2)
        here.rows(name, [5])  # tokens between are not known
        here.finish(name)
        here.verdict(name)
    assert here.decoder.decoded_rows == 2


def test_samples_are_made_anew_each_time(bench: MakeBench) -> None:
    seen = Seen()
    paid = BudgetSettings(1e6, 100, resamples=2)
    here = bench(
        screen=SamplingScreen(ScreenSettings(every_n_tokens=1, random_share=0.0, budget=paid)),
        decode=DecodeSettings(CacheSettings()), observer=seen, budget=paid,
    )  # fmt: skip
    for name in ("a", "b"):
        here.one(name, [2], coordinate=HIT)
    assert here.decoder.decoded_rows == 1 + 2 + 2
    assert seen.reused == [("b", 2)]


def test_a_near_rows_decoding_is_measured_against_the_row_itself(bench: MakeBench) -> None:
    class Measures:
        def __call__(self, vectors: torch.Tensor, decodings: Sequence[Decoding]) -> list[Decoding]:
            return [replace(d, cosine=float(v[1])) for v, d in zip(vectors, decodings, strict=True)]

    seen = Seen()
    here = caching(bench, seen, prefix=False, near_cosine=0.95)
    here.decoder.measured = Measures()  # type: ignore[attr-defined]
    for name, beside in (("a", 0.0), ("b", 0.125)):
        vector = torch.eye(D_MODEL)[3:]
        vector[0, 1] = beside
        here.start(name)
        here.vectors(name, [2], vector)
        here.finish(name)
        here.verdict(name)
    assert seen.reused == [("b", 2)]
    assert seen.decodings[-1][2].cosine == 0.125
    assert here.counter("decode.cache.near_hits") == 1


def test_where_it_cannot_be_measured_its_fidelity_is_unknown(bench: MakeBench) -> None:
    seen = Seen()
    here = caching(bench, seen, prefix=False, near_cosine=0.95)
    here.one("a", [0])
    here.one("b", [0])
    decoding = seen.decodings[-1][2]
    assert (decoding.reused, decoding.cosine, decoding.fve) == (True, None, None)


def test_what_is_known_is_judged_while_the_decoder_is_away(bench: MakeBench) -> None:
    here = caching(bench)
    assert here.one("a").state is VerdictState.CLEAN
    here.decoder.faults = [RuntimeError()] * 50
    assert here.one("b").state is VerdictState.CLEAN
    assert here.decoder.calls == 1


def test_a_cache_that_fails_costs_nobody_a_decoding(bench: MakeBench, monkeypatch: Any) -> None:
    here = caching(bench)
    work: Any = here.pipeline._worker
    cache = work._decoding._reusing._cache

    def broken(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(cache, "find", broken)
    for name in "abcdefgh":
        assert here.one(name).state is VerdictState.CLEAN
    assert here.counter("failed.decode_cache.RuntimeError") > 0


def test_switched_off_every_row_is_decoded(bench: MakeBench) -> None:
    here = caching(bench, prefix=False)
    here.one("a")
    here.one("b")
    assert here.decoder.decoded_rows == 6
    assert here.counter("decode.cache.misses") == 0
