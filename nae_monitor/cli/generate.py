"""``generate`` and ``record``: monitored generation over prompts."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nae_monitor.cli.configuration import ConfigOption, JsonOption, settings_from
from nae_monitor.cli.prompts import Prompt, read_prompts
from nae_monitor.cli.terminal import (
    error_line,
    errors,
    json_line,
    output,
    printable,
    quiet_libraries,
)
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.settings import Settings

if TYPE_CHECKING:
    from nae_monitor.models import Target
    from nae_monitor.monitor import Monitor
    from nae_monitor.records import Verdict

PromptsOption = Annotated[
    str,
    typer.Option(
        "--prompts",
        "-p",
        help="A file of prompts, or - for standard input: one a line, or JSON Lines with "
        '"prompt", "session_id", "tenant".',
    ),
]
TokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Length limit of each reply.")
]
WaitOption = Annotated[
    float, typer.Option("--wait-s", min=0, help="How long to wait for the verdict of a prompt.")
]
STYLES = {"alert": "bold red", "clean": "green", "undecided": "yellow"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a reply may be, and how long to wait."""

    max_new_tokens: int
    wait_s: float


def generate(
    config: ConfigOption = None,
    prompts: PromptsOption = "-",
    max_new_tokens: TokensOption = 128,
    wait_s: WaitOption = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Answer prompts under the monitor; print each reply and its verdict.

    Alerts go where the configuration says. Ctrl-C keeps what was accepted. Exits with 1 where
    something was left undone: a request not worked off, an alert not delivered.
    """
    settings = settings_from(config)
    limits = Limits(max_new_tokens, wait_s)
    _, all_done = _run(settings, read_prompts(prompts), limits, as_json)
    if not all_done:
        raise typer.Exit(1)


def record_prompts(
    out: Path,
    config: Path | None,
    prompts: str,
    max_new_tokens: int,
    wait_s: float,
    as_json: bool,
) -> None:
    """As generate, and record the activations; print where the recording is."""
    settings = settings_from(config)
    if settings.capture.placement != "inline":
        place = Mark(f"capture.placement {settings.capture.placement}")
        mend = "set record.dir for the workers and use generate, or set the placement to inline"
        raise ConfigurationError([Problem(place, "workers write the recordings", mend)])
    settings = replace(settings, record=replace(settings.record, dir=str(out)))
    limits = Limits(max_new_tokens, wait_s)
    where, all_done = _run(settings, read_prompts(prompts), limits, as_json)
    if where is not None and as_json:
        json_line({"recording": str(where)})
    elif where is not None:
        output().print(f"recording: {where}", soft_wrap=True)
    if not all_done:
        raise typer.Exit(1)


def _run(
    settings: Settings, prompts: list[Prompt], limits: Limits, as_json: bool
) -> tuple[Path | None, bool]:
    """Generate over all prompts; where the recording is, if any, and whether all was worked off."""
    from nae_monitor.monitor import Monitor

    quiet_libraries()
    monitor = Monitor.from_settings(settings, console=errors())
    done = 0
    try:
        target = _load(settings)
        with monitor.watch(target.model, target.tokenizer):
            for prompt in prompts:
                _one(monitor, target, prompt, limits, as_json)
                done += 1
    except KeyboardInterrupt:
        error_line(f"stopped after {done} of {len(prompts)} prompts; keeping what was captured", "")
        raise
    finally:
        all_done = monitor.close()
        if not all_done:
            error_line("not everything was worked off or delivered in time", "warning: ")
    return monitor.recording, all_done


def _load(settings: Settings) -> Target:
    import torch

    from nae_monitor.models import load_target

    on_gpu = torch.cuda.is_available() and settings.nla.device != "cpu"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    return load_target(settings.target.model, dtype=dtype, device="cuda" if on_gpu else "cpu")


def _one(monitor: Monitor, target: Target, prompt: Prompt, limits: Limits, as_json: bool) -> None:
    request_id = uuid.uuid4().hex[:12]
    inputs = chat_inputs(target, prompt.text)
    refuse_too_long(target, int(inputs["input_ids"].shape[1]), limits.max_new_tokens, prompt.where)
    with monitor.request(request_id, session_id=prompt.session_id, tenant=prompt.tenant):
        tokens = target.model.generate(
            **inputs, max_new_tokens=limits.max_new_tokens, do_sample=False
        )
    reply = target.tokenizer.decode(
        tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    verdict = monitor.verdict(request_id, wait_s=limits.wait_s)
    if as_json:
        json_line(_as_json(prompt, reply, verdict))
    else:
        _print(prompt, reply, verdict)


def chat_inputs(target: Target, text: str) -> dict[str, Any]:
    """The model's inputs for one user message, by the chat template where there is one."""
    tokenizer = target.tokenizer
    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        inputs = tokenizer(text, return_tensors="pt")
    kept = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    return {name: tensor.to(target.model.device) for name, tensor in kept.items()}


def refuse_too_long(target: Target, prompt_tokens: int, new_tokens: int, where: str) -> None:
    """Raise InputDataError where a prompt and its reply would not fit the model's context."""
    from nae_monitor.errors import InputDataError

    config = target.model.config.get_text_config()
    limit = int(getattr(config, "max_position_embeddings", prompt_tokens + new_tokens))
    if prompt_tokens + new_tokens > limit:
        raise InputDataError(
            f"{where}: {prompt_tokens} prompt tokens and {new_tokens} new ones do not fit the "
            f"model's {limit}; shorten the prompt or lower --max-new-tokens"
        )


def _as_json(prompt: Prompt, reply: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "request_id": verdict.request_id,
        "session_id": prompt.session_id,
        "tenant": prompt.tenant,
        "prompt": prompt.text,
        "reply": reply,
        "verdict": verdict_json(verdict),
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain JSON values."""
    from nae_monitor.recording import finding_to_json

    coverage = verdict.coverage
    counts: dict[str, Any] = {
        name: getattr(coverage, f"{name}_tokens")
        for name in ("seen", "excluded", "screened", "sampled", "decoded", "judged", "cached")
    }
    return {
        "state": verdict.state.value,
        "reasons": list(verdict.reasons),
        "coverage_tokens": counts | {"dropped": dict(coverage.dropped_tokens)},
        "findings": [finding_to_json(finding) for finding in verdict.findings],
    }


def _print(prompt: Prompt, reply: str, verdict: Verdict) -> None:
    from rich.text import Text

    console, coverage = output(), verdict.coverage
    console.print(Text(f"> {printable(prompt.text)}", style="bold"))
    console.print(Text(printable(reply.strip())))
    state: Literal["alert", "clean", "undecided"] | str = verdict.state.value
    line = Text(state.upper(), style=STYLES[state])
    line.append(
        f"  request {verdict.request_id}: {coverage.seen_tokens} tokens seen, "
        f"{coverage.screened_tokens} screened, {coverage.decoded_tokens} decoded, "
        f"{sum(coverage.dropped_tokens.values())} dropped",
        style="dim",
    )
    console.print(line)
    for why in (*_matched(verdict), *verdict.reasons):
        console.print(Text(f"  {printable(why)}", style="dim"))
    console.print()


def _matched(verdict: Verdict) -> list[str]:
    """The rules that matched, once each, with where."""
    places: dict[str, list[int]] = {}
    for finding in verdict.findings:
        if finding.state.value == "match":
            places.setdefault(f"{finding.severity.value} {finding.rule_name}", []).append(
                finding.position
            )
    return [f"{name} at token {', '.join(map(str, at))}" for name, at in sorted(places.items())]
