"""``demo``: the whole pipeline on the embedded default, ending with a report."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nae_monitor.cli.demo_screen import DemoScreen, print_summary
from nae_monitor.cli.terminal import errors, quiet_libraries
from nae_monitor.settings import (
    BudgetSettings,
    PrivacySettings,
    RecordSettings,
    ScreenSettings,
    Settings,
)
from nae_monitor.sink_settings import AlertSettings, JsonlSettings, SinkSettings

if TYPE_CHECKING:
    from nae_monitor.models import Target
    from nae_monitor.monitor import Monitor
    from nae_monitor.records import Verdict

VERDICT_WAIT_S = 120.0
SPEED_EVERY = 3  # every third prompt is also generated without the monitor and without decoding
UNMONITORED, SCREENED, MONITORED = (
    "no monitor",
    "capture and screen",
    "capture, screen and decode",
)
VARIANTS = (UNMONITORED, SCREENED, MONITORED)
_TOLD_TOKENS = ("seen", "excluded", "screened", "sampled", "decoded", "reused", "judged")


def demo(
    prompts: Annotated[int, typer.Option(min=1, max=24, help="How many of the 24 prompts.")] = 24,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the files.")] = Path(
        "demo-output"
    ),
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of each reply.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Generate 24 prompts under the monitor and write alerts, a recording and a report.

    The prompts were written for this demo, so its files hold their text in the clear; a
    configuration of your own hides text unless it says otherwise.
    """
    from nae_monitor.models import load_target
    from nae_monitor.monitor import Monitor
    from nae_monitor.replay import write_report

    quiet_libraries()
    out.mkdir(parents=True, exist_ok=True)
    settings = demo_settings(out)
    screen = DemoScreen(as_json)
    with screen.status("loading the model, the NLA pair, the rules and the sentence encoder"):
        target = load_target(settings.target.model)
        monitor = Monitor.from_settings(settings, console=errors(), observer=screen.observe)
    try:
        with screen:
            run = _generate(monitor, target, demo_prompts()[:prompts], max_new_tokens, screen)
    finally:
        monitor.close(30.0)
    report = out / "report.html"
    assert monitor.recording is not None
    write_report(monitor.recording, report)
    summary = _summary(monitor, run, out, report)
    if as_json:
        print(json.dumps(summary, indent=2))  # noqa: T201 - the command's output
    else:
        print_summary(summary, run.tokens_per_s)


def demo_settings(out: Path) -> Settings:
    """The embedded default with everything kept in ``out`` and text in the clear."""
    return replace(
        Settings(),
        screen=ScreenSettings(budget=BudgetSettings(decodes_per_s=50.0, per_request=10)),
        alert=AlertSettings((SinkSettings("jsonl", JsonlSettings(str(out / "alerts.jsonl"))),)),
        record=RecordSettings(str(out / "recordings")),
        privacy=PrivacySettings(content="full"),
    )


def demo_prompts() -> list[Mapping[str, str]]:
    """The 24 prompts with their kinds."""
    from nae_monitor.strict_yaml import read_document

    file = resources.files("nae_monitor.cli") / "demo_prompts.yaml"
    return list(read_document("demo_prompts.yaml", file.read_text(encoding="utf-8")).value)


@dataclass(slots=True)
class _Run:
    """What a demo measured."""

    verdicts: list[tuple[Mapping[str, str], Verdict]] = field(default_factory=list)
    tokens_per_s: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in VARIANTS}
    )


def _generate(
    monitor: Monitor,
    target: Target,
    prompts: Sequence[Mapping[str, str]],
    max_new_tokens: int,
    screen: DemoScreen,
) -> _Run:
    run = _Run()
    quiet = _without_decoding(monitor)
    try:
        for number, prompt in enumerate(prompts):
            inputs = _inputs(target, prompt["prompt"])
            request_id = f"demo-{number:02d}"
            screen.title = f"{number + 1} of {len(prompts)}: {prompt['prompt']}"
            for name in _variants(number):
                with _variant(name, monitor, quiet, target, request_id):
                    speed = _timed(target, inputs, max_new_tokens)
                if number % SPEED_EVERY == 0:  # the same prompts for every variant
                    run.tokens_per_s[name].append(speed)
                if name == MONITORED:  # its decodes are done before anything else is timed
                    verdict = monitor.verdict(request_id, VERDICT_WAIT_S)
                    run.verdicts.append((prompt, verdict))
                    screen.verdict(prompt, verdict)
    finally:
        quiet.close(1.0)
    return run


def _variants(number: int) -> list[str]:
    """What prompt ``number`` is generated under, in turning order: no variant is always last."""
    if number % SPEED_EVERY:
        return [MONITORED]
    turn = (number // SPEED_EVERY) % len(VARIANTS)
    return [*VARIANTS[turn:], *VARIANTS[:turn]]


@contextmanager
def _variant(
    name: str, monitor: Monitor, quiet: Monitor, target: Target, request_id: str
) -> Iterator[None]:
    if name == UNMONITORED:
        yield
        return
    watching = monitor if name == MONITORED else quiet
    with watching.watch(target.model, target.tokenizer), watching.request(request_id):
        yield


def _without_decoding(monitor: Monitor) -> Monitor:
    """A second monitor that captures and screens every token and buys no decode."""
    settings = replace(
        monitor.settings,
        screen=replace(
            monitor.settings.screen, budget=replace(monitor.settings.screen.budget, per_request=0)
        ),
        alert=AlertSettings(()),
        record=RecordSettings(None),
    )
    return monitor.sibling(settings)


def _inputs(target: Target, prompt: str) -> Any:
    return target.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def _timed(target: Target, inputs: Any, max_new_tokens: int) -> float:
    """Generate greedily; new tokens per second."""
    started_s = time.perf_counter()
    result = target.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=target.tokenizer.pad_token_id,
    )
    new = int(result.shape[1]) - int(inputs["input_ids"].shape[1])
    return new / (time.perf_counter() - started_s)


def _summary(monitor: Monitor, run: _Run, out: Path, report: Path) -> dict[str, Any]:
    counts = monitor.health.counters()
    dropped = {k.removeprefix("dropped."): v for k, v in counts.items() if k.startswith("dropped.")}
    by_kind: dict[str, Counter[str]] = {}
    for prompt, verdict in run.verdicts:
        by_kind.setdefault(prompt["kind"], Counter())[verdict.state.value] += 1
    return {
        "tokens": {name: counts.get(f"tokens.{name}", 0) for name in _TOLD_TOKENS},
        "dropped": dropped,
        "alerts": counts.get("alerts.emitted", 0),
        "verdicts": {kind: dict(states) for kind, states in by_kind.items()},
        "tokens_per_s": {
            name: round(statistics.median(values), 2)
            for name, values in run.tokens_per_s.items()
            if values
        },
        "files": {
            "alerts": str(out / "alerts.jsonl"),
            "recording": str(monitor.recording),
            "report": str(report),
        },
    }
