"""Engines run in processes of their own; ``make test-vllm`` is how to run this folder."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm_live import ENGINE, RUN, Result, environment, unpacked

from nae_monitor.models import resolve_target

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "cli")]
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


@pytest.fixture(scope="session")
def run_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a plan; the process's output where it failed, else a :class:`Result`."""

    def run(
        batches: list[Any],
        config: str = "capture: {min_position: 0}\n",
        *,
        abort_after: int = 0,
        stop_at_rows: int = 1_000_000,
        plain_hook: bool = False,
        whole_monitor: bool = False,
        variables: dict[str, str] | None = None,
        **engine: Any,
    ) -> Result | str:
        folder = tmp_path_factory.mktemp("engine")
        (folder / "monitor.yaml").write_text(config)
        model = str(resolve_target("smollm2-135m-instruct"))
        plan = {
            "engine": {**ENGINE, "model": model, **engine},
            "batches": batches,
            "abort_after": abort_after,
            "stop_at_rows": stop_at_rows,
            "plain_hook": plain_hook,
            "whole_monitor": whole_monitor,
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        done = subprocess.run(
            [sys.executable, str(RUN), str(folder / "plan.json"), str(folder / "out.json")],
            env=environment(folder / "monitor.yaml", **(variables or {})),
            capture_output=True,
            text=True,
            timeout=580,
        )
        if done.returncode or not (folder / "out.json").exists():
            return done.stdout + done.stderr
        return unpacked(json.loads((folder / "out.json").read_text()))

    return run
