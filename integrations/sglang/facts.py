"""How an SGLang process is set up, and what of it the tap cannot work under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.settings import Settings

ONE_REQUEST_A_ROW = "rows of a pass could not be told apart"


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one scheduler process."""

    rank: int  # among tensor parallel ranks; 0 reads
    buffer_tokens: int  # the longest pass
    has_tokenizer: bool
    unsupported: tuple[tuple[str, str], ...]  # option, and why it is refused


def read_facts(runner: Any) -> Facts:
    """Read them off SGLang's published configuration and a loaded ``ModelRunner``."""
    from sglang.srt import runtime_context as context

    parallel, schedule = context.get_parallel(), context.get_schedule()
    running = schedule.max_running_requests or 0
    return Facts(
        rank=int(parallel.tp_rank),
        buffer_tokens=int(context.max_prefill_buffer_tokens()) + int(running),
        has_tokenizer=not context.get_serving().skip_tokenizer_init,
        unsupported=tuple(_unsupported(context, runner)),
    )


def refuse_unsupported(facts: Facts, settings: Settings) -> None:
    """Refuse what the tap cannot work under, and what SGLang is not asked to do yet.

    Raises:
        ConfigurationError: every such setting, with the reason.
    """
    mend = "leave it out"
    problems = [Problem(Mark(f"SGLang {name}"), why, mend) for name, why in facts.unsupported]
    if settings.actions.hold_s:
        why = "one pass of SGLang serves many answers; none of them can be held back"
        problems.append(Problem(Mark("actions.hold_s"), why, mend))
    if settings.actions.stop_generation == "enforce":
        why = "answers of SGLang cannot be stopped yet"
        problems.append(Problem(Mark("actions.stop_generation"), why, "use shadow"))
    if settings.capture.placement == "inline" and not facts.has_tokenizer:
        why = "texts of tokens are not known here"
        problems.append(Problem(Mark("SGLang --skip-tokenizer-init"), why, "use placement ipc"))
    if problems:
        raise ConfigurationError(problems)


def _unsupported(context: Any, runner: Any) -> Iterator[tuple[str, str]]:
    parallel, disagg, execution = context.get_parallel(), context.get_disagg(), context.get_exec()
    if not runner.is_generation:
        yield "--is-embedding", "a model that generates nothing has no answers to watch"
    if parallel.pp_size > 1:
        yield "--pp-size", "the watched block is on one rank and the requests' state on another"
    if parallel.attn_cp_size > 1:
        yield "--attn-cp-size", "each rank computes a part of a prompt's rows"
    if parallel.attn_dp_enabled:
        yield "--enable-dp-attention", "rows of several schedulers run in one pass"
    if parallel.enable_attn_tp_input_scattered or parallel.enable_layernorm_sp:
        yield "scattered rows (sequence parallelism)", "each rank holds a part of a pass's rows"
    if not runner.spec_algorithm.is_none():
        why = "rows of rejected draft tokens cannot be told from those that count"
        yield "--speculative-algorithm", why
    if disagg.disaggregation_mode != "null":
        yield "--disaggregation-mode", "prompt and answer are computed in different processes"
    if disagg.enable_pdmux:
        yield "--enable-pdmux", "a prompt's blocks are computed in several passes"
    if execution.overlap.enable_two_batch_overlap:
        yield "--enable-two-batch-overlap", "two halves of a batch write the same rows"
    if execution.dllm.dllm_algorithm is not None:
        yield "--dllm-algorithm", "a diffusion model computes positions again and again"
    if execution.features.enable_encoder_swa_bounded_replay:
        yield "--enable-encoder-swa-bounded-replay", ONE_REQUEST_A_ROW
    if runner.model_config.is_encoder_decoder:
        yield "--model-path", "an encoder-decoder model is not a decoder alone"
