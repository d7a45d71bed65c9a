"""P(unsupported) while a request runs: what a hit's further texts say to rules and alerts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_parts import Bench

from nae_monitor.decode.support import ClaimType, SupportCalibration, SupportModel
from nae_monitor.detect import RuleSet, load_rules
from nae_monitor.records import Activation, Alert, Decoding, SampleReason, Severity, VerdictState
from nae_monitor.screen import SamplingScreen
from nae_monitor.settings import BudgetSettings, ScreenSettings
from nae_monitor.testing import ManualClock

MakeBench = Callable[..., Bench]
MODEL = SupportModel(0.5, 0.5, (0.0,) * 2, (1.0,) * 2, (-8.0, 0.0), 4.0)
KNOWN = SupportCalibration("fake", ("fraud", "small talk"), {ClaimType.THEME: MODEL})
RULE = """
schema_version: 1
title: Fraud
id: 0b9b54c1-30d2-4f43-9f0d-6a3a8f7c1e00
name: fraud
severity: high
scope: {phase: [prompt, completion], min_token_index: 0}
detection: {word: {field: explanation, regex: ['fraud']}, condition: word}
fidelity: {min: 0.0, below: drop, unscored: downgrade, max_unsupported: 0.4}
"""


def rules(tmp_path: Path) -> RuleSet:
    (tmp_path / "rules.yaml").write_text(RULE, encoding="utf-8")
    return load_rules([tmp_path])


def watched(
    bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, themes: str, **given: Any
) -> tuple[list[tuple[Activation, Decoding]], Bench]:
    """One hit; ``themes``, one letter a further text, f: fraud, s: small talk."""
    seen: list[tuple[Activation, Decoding]] = []
    paid = BudgetSettings(decodes_per_s=1e6, per_request=1000, resamples=len(themes))
    every = ScreenSettings(every_n_tokens=8, random_share=0.0, budget=paid)
    here = bench(
        rules=rules(tmp_path),
        budget=paid,
        screen=SamplingScreen(every, clock=ManualClock()),
        observer=lambda activation, decoding, _: seen.append((activation, decoding)),
        **{"support": KNOWN, **given},
    )
    plain = here.decoder.decode

    def decode(vectors: torch.Tensor, *, seeds: Sequence[int] | None = None) -> list[Decoding]:
        letters = ["f"] * len(vectors) if seeds is None else [themes[seed - 1] for seed in seeds]
        names = {"f": "fraud: asks", "s": "small talk: greets"}
        return [
            replace(one, text=f'at " a"; expects " b"; {names[letter]}; prompt "c', seconds=0.5)
            for one, letter in zip(plain(vectors), letters, strict=True)
        ]

    monkeypatch.setattr(here.decoder, "decode", decode)
    here.one("r", [0])
    return seen, here


def alert_of(here: Bench) -> Alert:
    (alert,) = here.sink.alerts
    return alert


def test_a_hit_that_its_further_texts_repeat_passes_the_gate_and_the_alert_tells_the_cost(
    bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, here = watched(bench, tmp_path, monkeypatch, "fff")
    assert [a.reason for a, _ in seen[1:]] == [SampleReason.RESAMPLE] * 3
    assert seen[0][1].support is None
    assert all(d.support is not None for _, d in seen[1:])
    alert = alert_of(here)
    assert alert.severity is Severity.HIGH
    finding = alert.evidence[0].finding
    assert finding.unsupported is not None
    assert finding.unsupported <= 0.4
    assert (finding.unsupported_decodes, finding.unsupported_s) == (3, 1.5)


def test_a_hit_that_its_further_texts_contradict_stays_downgraded(
    bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, here = watched(bench, tmp_path, monkeypatch, "sss")
    assert all(d.support is None for _, d in seen)
    assert (alert_of(here).severity, alert_of(here).count) == (Severity.MEDIUM, 1)
    assert alert_of(here).evidence[0].finding.unsupported is None


def test_a_claim_that_few_texts_repeat_is_dropped_where_the_gate_says_so(
    bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, here = watched(bench, tmp_path, monkeypatch, "fssss")
    assert alert_of(here).count == 1  # the first, of which nothing was known yet
    assert here.counter("rules.dropped_unsupported") == 1


def test_without_a_calibration_the_figure_is_unknown_and_the_rule_never_satisfied(
    bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, here = watched(bench, tmp_path, monkeypatch, "fff", support=None)
    assert (alert_of(here).severity, alert_of(here).count) == (Severity.MEDIUM, 4)
    assert all(e.finding.unsupported is None for e in alert_of(here).evidence)


def test_support_that_fails_is_counted_and_the_rows_are_judged_all_the_same(
    bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(KNOWN, models={ClaimType.THEME: object()})  # type: ignore[dict-item]
    _, here = watched(bench, tmp_path, monkeypatch, "fff", support=broken)
    assert here.counter("failed.support.AttributeError") >= 1
    verdict = here.verdict("r")
    assert (verdict.state, verdict.coverage.judged_tokens) == (VerdictState.ALERT, 4)
    assert alert_of(here).evidence[0].finding.unsupported is None
