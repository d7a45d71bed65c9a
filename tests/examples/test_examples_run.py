"""Each example runs as it stands, and shows what its story promises."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nae_monitor.detect import Judge, load_rules, run_inline_tests
from nae_monitor.models import resolve_nla
from nae_monitor.records import (
    Activation,
    Decoding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Transcript,
)
from nae_monitor.screen import read_directions
from nae_monitor.screen.directions import FILE_NAME
from nae_monitor.settings import EMBEDDED_AR

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str | Path, cwd: Path) -> str:
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_explains_itself(path: Path, tmp_path: Path) -> None:
    assert "usage: " in run(path.name, "--help", cwd=tmp_path)


def test_the_house_rules_pass_their_own_tests() -> None:
    results = run_inline_tests(load_rules([EXAMPLES / "rules"]))
    assert [r.outcome for r in results] == ["passed"] * 2


@pytest.mark.live
@pytest.mark.timeout(600)
def test_my_model_is_watched(tmp_path: Path) -> None:
    said = run("watch_my_model.py", "--max-new-tokens", "8", cwd=tmp_path)
    assert said.count("tokens judged") == 2


@pytest.mark.live
@pytest.mark.timeout(600)
def test_alerts_arrive_from_kafka(tmp_path: Path) -> None:
    said = run("alerts_from_kafka.py", cwd=tmp_path)
    assert "serving: alert" in said
    assert "rule credentials_asked_for, request r1" in said


@pytest.mark.live
@pytest.mark.timeout(600)
def test_a_recording_is_judged_by_other_rules(tmp_path: Path) -> None:
    said = run("rejudge_recording.py", "--out", tmp_path / "run", cwd=tmp_path)
    assert "credentials_asked_for: request r1" in said
    assert "credentials_asked_for: request r0" not in said
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.live
@pytest.mark.timeout(600)
def test_a_loop_of_my_own_is_watched(tmp_path: Path) -> None:
    said = run("my_own_decode_loop.py", "--max-new-tokens", "4", cwd=tmp_path)
    assert said.count("tokens judged") == 1


def test_the_rule_on_a_direction_judges_by_the_shipped_set(tmp_path: Path) -> None:
    name = "points_at_cyber_misuse"
    shutil.copy(EXAMPLES / "direction_rule" / f"{name}.yaml", tmp_path)
    shipped = resolve_nla(EMBEDDED_AR) / FILE_NAME
    directions = read_directions(shipped)
    along = directions.weights[directions.names.index("cyber_misuse")]
    beside = torch.nn.functional.normalize(torch.ones_like(along) - along.sum() * along, dim=0)
    states = {}
    for present in (False, True):
        if present:
            (tmp_path / "directions").mkdir()
            shutil.copy(shipped, tmp_path / "directions")
        judge = Judge(load_rules([tmp_path]))
        for cosine in (-0.23, -0.15):
            vector = 200 * (cosine * along + (1 - cosine**2) ** 0.5 * beside)
            activation = Activation(
                Request("r", "r", "m"), 20, 1, "", Phase.PROMPT, 20, vector, SampleReason.SCORE
            )
            decoding = Decoding("A request for tea.", True, 0.9, 0.5, 1, 8, "nla", 20, 1.0)
            found = judge.judge(activation, decoding, Transcript("", ""))
            states[present, cosine] = [finding.state for finding in found]
    assert states == {
        (False, -0.23): [FindingState.UNDECIDED], (False, -0.15): [FindingState.UNDECIDED],
        (True, -0.23): [], (True, -0.15): [FindingState.MATCH],
    }  # fmt: skip
