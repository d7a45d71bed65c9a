"""Engine settings under which rows could not be told apart; refused when the engine starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.settings import Settings


def refuse_unsupported(config: Any, settings: Settings) -> None:
    """Look at a ``VllmConfig``, and at what the monitor's own settings ask of the engine.

    Raises:
        ConfigurationError: every setting the tap cannot work under, with the reason.
    """
    problems = [Problem(Mark(f"vLLM {where}"), why, mend) for where, why, mend in _found(config)]
    if settings.actions.hold_s:
        why = "one pass of vLLM serves many answers; none of them can be held back"
        problems.append(Problem(Mark("actions.hold_s"), why, "leave it out"))
    if problems:
        raise ConfigurationError(problems)


def _found(config: Any) -> Iterator[tuple[str, str, str]]:
    parallel = config.parallel_config
    if _size(parallel, "pipeline_parallel_size") > 1:
        yield (
            "--pipeline-parallel-size",
            "the watched block is on one rank and the requests' state on another",
            "use tensor parallelism",
        )
    if _size(parallel, "prefill_context_parallel_size") > 1:
        yield (
            "--prefill-context-parallel-size",
            "each rank computes a part of a prompt's rows",
            "leave it out",
        )
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "use_ubatching", False):
        yield (
            "--enable-dbo",
            "two halves of a batch run at once and write the same rows",
            "leave it out",
        )
    if config.speculative_config is not None:
        yield (
            "--speculative-config",
            "rows of rejected draft tokens cannot be told from those that count",
            "leave it out",
        )
    if config.model_config.is_encoder_decoder:
        yield "--model", "an encoder-decoder model is not a decoder alone", "use a decoder"


def _size(parallel: Any, name: str) -> int:
    return int(getattr(parallel, name, 1) or 1)
