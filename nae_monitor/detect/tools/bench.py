"""What rules cost: wall time of judging one text, by rule and of the set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nae_monitor.detect.engine import Judge
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.tools.corpus import Sample

WHOLE_SET = "all rules"


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds a text."""

    name: str
    texts: int
    p50_us: float
    p99_us: float


def bench(
    rule_set: RuleSet, samples: Sequence[Sample], encoder: Encoder | None = None, rounds: int = 5
) -> list[Cost]:
    """The cost of the whole set, then of each rule alone, dearest first.

    A text's figure is its best of ``rounds`` after a first: with caches as warm as in service, and
    without what other processes do meanwhile.

    Raises:
        ConfigurationError: the encoder fails on the rules' own exemplars.
    """
    enabled = [rule for rule in rule_set.rules if rule.enabled]
    whole = _cost(WHOLE_SET, Judge(rule_set, encoder), samples, rounds)
    single = [
        _cost(rule.name, Judge(RuleSet.of([rule]), encoder), samples, rounds) for rule in enabled
    ]
    return [whole, *sorted(single, key=lambda cost: -cost.p50_us)]


def _cost(name: str, judge: Judge, samples: Sequence[Sample], rounds: int) -> Cost:
    best = [min(_seconds(judge, s) for _ in range(rounds + 1)) * 1e6 for s in samples]
    p50, p99 = np.percentile(best, [50, 99]) if best else (0.0, 0.0)
    return Cost(name, len(best), round(float(p50), 2), round(float(p99), 2))


def _seconds(judge: Judge, sample: Sample) -> float:
    start = time.perf_counter()
    judge.judge(sample.activation, sample.decoding, sample.transcript)
    return time.perf_counter() - start
