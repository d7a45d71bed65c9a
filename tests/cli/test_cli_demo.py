from __future__ import annotations

from collections import Counter

import pytest

from nae_monitor.cli.demo import MONITORED, SPEED_EVERY, VARIANTS, _variants, demo_prompts
from nae_monitor.cli.demo_screen import DemoScreen
from nae_monitor.records import (
    Coverage,
    Finding,
    FindingState,
    Severity,
    Verdict,
    VerdictState,
)


def test_the_demo_has_twelve_ordinary_and_twelve_other_whole_prompts() -> None:
    prompts = demo_prompts()
    assert Counter(p["kind"] == "ordinary" for p in prompts) == {True: 12, False: 12}
    assert all(set(p) == {"kind", "prompt"} for p in prompts)
    assert all(p["prompt"][-1] in ".?!" for p in prompts)
    assert len({p["prompt"] for p in prompts}) == 24


def test_every_prompt_is_monitored_and_the_timed_ones_take_turns() -> None:
    orders = [_variants(n) for n in range(24)]
    assert all(MONITORED in order for order in orders)
    timed = orders[::SPEED_EVERY]
    assert all(sorted(order) == sorted(VARIANTS) for order in timed)
    assert {order[0] for order in timed} == set(VARIANTS)


@pytest.mark.parametrize(
    ("state", "severity", "told"),
    [
        (VerdictState.ALERT, Severity.HIGH, "ALERT|grave"),
        (VerdictState.CLEAN, Severity.INFORMATIONAL, "clean|signs: grave"),
        (VerdictState.UNDECIDED, Severity.INFORMATIONAL, "undecided|a row was lost"),
    ],
)
def test_a_verdict_is_told_by_what_led_to_it(
    capsys: pytest.CaptureFixture[str], state: VerdictState, severity: Severity, told: str
) -> None:
    match = FindingState.MATCH
    finding = Finding("r1", 3, "id", "grave", "1", "Grave", severity, match)
    reasons = ("a row was lost",) if state is VerdictState.UNDECIDED else ()
    coverage = Coverage(0, 0, 0, 0, 0, 0, {})
    verdict = Verdict("r1", state, (finding,), coverage, reasons)
    DemoScreen(silent=False).verdict({"kind": "ordinary", "prompt": "Hello?"}, verdict)
    mark, why = told.split("|")
    line = " ".join(capsys.readouterr().err.split())
    assert line == f"{mark} ordinary Hello? {why}"
