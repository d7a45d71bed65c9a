"""The notebook runs from its first cell to its last, and counts what the recording holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "replay")]

from replay_demo_run import write_demo_run  # noqa: E402

from nae_monitor.recording import Recording  # noqa: E402
from nae_monitor.records import FindingState  # noqa: E402

NOTEBOOK = ROOT / "examples" / "audit_with_pandas.ipynb"
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


def executed(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The notebook's cells after a run; a cell that fails raises."""
    monkeypatch.setenv("NAE_MONITOR_RUN", str(run))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return list(notebook.cells)


def said(cells: list[Any]) -> str:
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "\n".join(o.get("text") or o["data"]["text/plain"] for o in outputs)


def test_the_notebook_counts_what_the_recording_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demo_run(tmp_path / "run")
    recording = Recording.open(tmp_path / "run")
    findings = list(recording.findings())
    matched = {f.request_id for f in findings if f.state is FindingState.MATCH}
    undecided = sum(f.state is FindingState.UNDECIDED for f in findings)
    text = said(executed(tmp_path / "run", monkeypatch))
    rows = sum(1 for _ in recording.activations())
    assert f"'activations': ({rows}, " in text
    assert f"24 requests, {len(matched)} with an alert, {undecided} judgements" in text
    assert "cyber crime" in text


def test_the_notebook_keeps_nothing_of_the_machine_it_was_run_on() -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert "/tmp" not in text
    assert 'execution_count": null' not in text  # it is committed as it ran
