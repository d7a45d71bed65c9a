"""The directions that every row is scored along."""

from __future__ import annotations

from nae_monitor.cli.checks.check import Check, problem_checks
from nae_monitor.errors import ConfigurationError
from nae_monitor.screening import directions_for
from nae_monitor.settings import Settings


def screen(settings: Settings, d_model: int, layer: int) -> list[Check]:
    """That the set is there and fits the pair; without one, how rows are chosen."""
    try:
        found = directions_for(settings, d_model, layer)
    except ConfigurationError as error:
        return problem_checks("screen", error)
    if found is None:
        n = settings.screen.every_n_tokens
        return [Check("screen", "ok", f"one token in {n} and some by chance, nothing is scored")]
    share = f"{100 * settings.screen.decode_share:g} % of ordinary tokens reach what buys a decode"
    by = found.provenance.get("backend", "unknown means")
    what = f"{len(found.names)} directions by {by} for {found.base_model}; {share}"
    if found.base_model != settings.target.model:
        mend = "make sure that this is the same model, or make a set with `screen build`"
        return [Check("screen", "warning", what, mend)]
    return [Check("screen", "ok", what)]
