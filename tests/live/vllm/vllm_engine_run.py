"""Runs vLLM's offline engine under the plugin in a process of its own, and writes what it told.

Usage: vllm_engine_run.py PLAN.json OUT.json; a plan holds ``engine`` (arguments of ``LLM``),
``batches`` (lists of ``{prompt, max_tokens}``, run one after the other) and ``abort_after``.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams

from nae_monitor.health import Health
from nae_monitor.integrations.engines import hosts
from nae_monitor.integrations.engines.buffer import write
from nae_monitor.integrations.vllm.tap import Tap
from nae_monitor.records import Request, RowBatch

LAYER, D_MODEL = 20, 576


class Collector:
    """A host that keeps everything."""

    layer, d_model = LAYER, D_MODEL

    def __init__(self, stop_at_rows: int) -> None:
        self.stop_at_rows = stop_at_rows
        self.health = Health()
        self.listener = self
        self.told: dict[str, dict[str, Any]] = {}
        self.doubled = 0
        self.closed = False

    def request_started(self, request: Request, prompt_token_ids: tuple[int, ...]) -> None:
        self.told[request.request_id] = {
            "prompt": prompt_token_ids, "output": [], "rows": {}, "ids": {}, "phases": {}, "end": 0,
            "stopped": None,
        }  # fmt: skip

    def rows(self, batch: RowBatch) -> None:
        for row, position in enumerate(batch.positions):
            told = self.told[batch.requests[batch.request_index[row]].request_id]
            self.doubled += position in told["rows"]
            told["rows"][position] = batch.vectors[row].float().clone()
            told["ids"][position] = batch.token_ids[row]
            told["phases"][position] = batch.phases[row].value

    def tokens(self, request_id: str, token_ids: tuple[int, ...]) -> None:
        self.told[request_id]["output"] += token_ids

    def request_finished(self, request_id: str) -> None:
        self.told[request_id]["end"] += 1

    def should_stop(self, request_id: str) -> bool:
        told = self.told[request_id]
        return told["stopped"] is None and len(told["rows"]) >= self.stop_at_rows

    def confirm_stop(self, request_id: str, *, ended: bool) -> None:
        self.told[request_id]["stopped"] = ended

    def close(self) -> None:
        self.closed = True


def main(plan: dict[str, Any], out: Path) -> None:
    collector = Collector(plan["stop_at_rows"])
    if not plan["whole_monitor"]:
        hosts.open_host = lambda settings, tokenizer: collector
    if plan["plain_hook"]:
        Tap._hooks = plain_hook  # type: ignore[method-assign]
    llm = LLM(**plan["engine"])
    answers: dict[str, list[int]] = {}
    for batch in plan["batches"]:
        for given in llm.generate(
            [one["prompt"] for one in batch],
            [SamplingParams(temperature=0, max_tokens=one["max_tokens"]) for one in batch],
            use_tqdm=False,
        ):
            answers[given.request_id] = list(given.outputs[0].token_ids)
    if plan.get("abort_after"):
        abort(llm, plan["abort_after"])
    llm.llm_engine.engine_core.shutdown()
    told = [
        {
            "request_id": request_id,
            "prompt": told["prompt"],
            "output": told["output"],
            "answer": answers.get(request_id.rsplit("-", 1)[0]),
            "positions": list(told["rows"]),
            "ids": list(told["ids"].values()),
            "phases": list(told["phases"].values()),
            "rows": packed(told["rows"]),
            "end": told["end"],
            "stopped": told["stopped"],
            "cached": collector.health.coverage(request_id).cached_tokens,
            "seen": collector.health.coverage(request_id).seen_tokens,
        }
        for request_id, told in collector.told.items()
    ]
    result = {
        "told": told,
        "counters": dict(collector.health.counters()),
        "doubled": collector.doubled,
        "closed": collector.closed,
    }
    out.write_text(json.dumps(result))


def plain_hook(tap: Tap) -> None:
    """A hook as people write them: Python, which a compiled graph leaves out."""

    def hook(_: Any, __: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            write(output, tap.rows)

    tap._undo = tap.block.register_forward_hook(hook).remove


def abort(llm: LLM, steps: int) -> None:
    """One long request, aborted after some steps, and a short one behind it."""
    engine = llm.llm_engine
    engine.add_request("aborted", "Count to a thousand:", SamplingParams(max_tokens=200))
    for _ in range(steps):
        engine.step()
    engine.abort_request(["aborted"])
    llm.generate("Hello", SamplingParams(max_tokens=2), use_tqdm=False)


def packed(rows: dict[int, torch.Tensor]) -> str:
    """float32 ``[n, d]``, as base64."""
    if not rows:
        return ""
    return base64.b64encode(torch.stack(list(rows.values())).numpy().tobytes()).decode()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
