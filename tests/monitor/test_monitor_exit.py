"""A process that ends, or is interrupted, without closing its monitor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nae_monitor.recording import Recording

SCRIPT = """
import signal, sys
from pathlib import Path
from monitor_parts import generate, monitor, prompt, target, tokenizer

watched = monitor(Path(sys.argv[1]))
model = target()
with watched.watch(model, tokenizer()), watched.request("r"):
    generate(model, prompt())
    if sys.argv[2] == "interrupted":
        signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize(("how", "code"), [("ended", 0), ("interrupted", -2)])
def test_nothing_accepted_is_lost_when_the_process_ends(
    tmp_path: Path, how: str, code: int
) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    (recording,) = (tmp_path / "recordings").iterdir()
    recorded = Recording.open(recording)
    assert recorded.complete
    (request,) = recorded.requests()
    assert request.coverage.judged_tokens == len(list(recorded.activations())) > 0
    alerts = (tmp_path / "alerts.jsonl").read_text().splitlines()
    assert {json.loads(line)["subject"] for line in alerts} == {"r"}
