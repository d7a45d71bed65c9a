"""The demo itself, replayed: what an auditor is shown is what the live monitor found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nae_monitor.cli import run

PROMPTS, NEW_TOKENS = 4, 16


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo recorded of its first prompts, two of them harmful."""
    out = tmp_path_factory.mktemp("demo")
    size = ["--prompts", str(PROMPTS), "--max-new-tokens", str(NEW_TOKENS)]
    assert run(["demo", *size, "-o", str(out), "--json"]) == 0
    (found,) = (out / "recordings").iterdir()
    return found


@pytest.mark.parametrize("mode", [[], ["--redecode"]], ids=["as it was decoded", "decoded again"])
def test_replaying_the_demo_gives_its_findings_each_byte_for_byte(
    recording: Path, mode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "run"
    options = ["-o", str(again), "--against", str(recording), "--json"]
    assert run(["replay", str(recording), *mode, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    live, replayed = (
        (place / "findings.jsonl").read_bytes().splitlines() for place in (recording, again)
    )
    assert len(live) >= PROMPTS  # else there would be nothing to reproduce
    # Live they stand as they were found, in a replay by their rows.
    assert sorted(replayed) == sorted(live)
    assert told["comparison"]["identical"]
    assert told["comparison"]["same"] == len(live)
