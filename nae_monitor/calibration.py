"""The calibration set that a configuration means, and the rules that need one."""

from __future__ import annotations

import logging
from pathlib import Path

from nae_monitor.detect import Calibration, RuleSet, read_calibration
from nae_monitor.detect.calibration import shipped_calibration
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.models import resolve_nla
from nae_monitor.settings import Settings

log = logging.getLogger("nae_monitor")

MEND = "measure one with `nae-monitor nla calibrate`, and name it in detect.calibration"


def calibration_for(settings: Settings, nla_id: str) -> Calibration | None:
    """The set that the configuration names, or that the reconstructor's directory holds.

    A set that lies there for another pair is none: its reconstructor serves a verbalizer of the
    user's own.

    Args:
        settings: of the monitor.
        nla_id: the pair that decodes.

    Raises:
        ConfigurationError: not there, no calibration set, or that of another pair.
    """
    named = settings.detect.calibration
    directory = resolve_nla(settings.nla.ar)
    if not named:
        shipped = shipped_calibration(directory)
        return shipped if shipped is not None and shipped.nla_id == nla_id else None
    found = read_calibration(Path(named))
    if found.nla_id != nla_id:
        message = f"is the calibration set of {found.nla_id!r}, not of {nla_id!r}"
        mend = "measure one with this pair (`nae-monitor nla calibrate`), or leave it out"
        raise ConfigurationError([Problem(Mark(named), message, mend)])
    return found


def rules_on_percentiles(rules: RuleSet) -> list[str]:
    """Names of the enabled rules that gate on a percentile or look at one."""
    return [
        rule.name
        for rule in rules.rules
        if rule.enabled
        if (rule.fidelity is not None and rule.fidelity.metric == "percentile")
        or any(selection.field == "percentile" for selection in rule.selections.values())
    ]


def warn_of_unknown_percentiles(rules: RuleSet, calibration: Calibration | None) -> None:
    """Log once, at a start, which rules lack the set that their percentiles come from."""
    names = rules_on_percentiles(rules)
    if names and calibration is None:
        message = "no calibration set: percentiles are unknown to %s; %s"
        log.warning(message, ", ".join(names), MEND)
