"""Whose rows a forward pass computed, read off vLLM's two kinds of runner."""

from __future__ import annotations

from typing import Any

from nae_monitor.errors import UnsupportedError
from nae_monitor.integrations.engines.passes import Part, Pass


def read_pass(runner: Any, scheduler_output: Any) -> Pass | None:
    """The pass that a runner has just run; None where it ran none.

    Call it after ``execute_model`` and before anything else is asked of the runner.

    Raises:
        UnsupportedError: the runner is of neither kind.
    """
    if not scheduler_output.total_num_scheduled_tokens:
        return None
    if hasattr(runner, "req_states"):
        return _second(runner)
    if hasattr(runner, "input_batch"):
        return _first(runner, scheduler_output)
    raise UnsupportedError(f"{type(runner).__name__} is no model runner that is known")


def check_runner(runner: Any) -> None:
    """Refuse a runner that :func:`read_pass` cannot read.

    Raises:
        UnsupportedError: as there.
    """
    second = hasattr(runner, "req_states") and hasattr(runner, "execute_model_state")
    first = hasattr(runner, "input_batch") and hasattr(runner, "input_ids")
    if not (first or second):
        raise UnsupportedError(f"{type(runner).__name__} is no model runner that is known")


def _first(runner: Any, scheduler_output: Any) -> Pass:
    """vLLM's V1 runner keeps the batch between passes; rows lie in its order."""
    batch, offset, parts = runner.input_batch, 0, []
    for index, request_id in enumerate(batch.req_ids[: batch.num_reqs]):
        count = int(scheduler_output.num_scheduled_tokens[request_id])
        start = int(batch.num_computed_tokens_cpu[index])
        parts.append(Part(request_id, start, count, offset))
        offset += count
    return Pass(tuple(parts), runner.input_ids.gpu[:offset])


def _second(runner: Any) -> Pass | None:
    """The V2 runner builds a batch for each pass, and keeps it until tokens are sampled.

    ``num_scheduled_tokens`` of that batch is an upper bound; where queries begin is exact.
    """
    state = runner.execute_model_state
    if state is None:
        return None
    batch, parts = state.input_batch, []
    starts = batch.query_start_loc_np.tolist()
    for index, request_id in enumerate(batch.req_ids[: batch.num_reqs]):
        count = starts[index + 1] - starts[index]
        start = int(batch.num_computed_tokens_np[index])
        parts.append(Part(request_id, start, count, starts[index]))
    total = starts[batch.num_reqs]
    return Pass(tuple(parts), batch.input_ids[:total])
