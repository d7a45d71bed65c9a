"""The calibration set that percentiles come from."""

from __future__ import annotations

from nae_monitor.calibration import MEND, calibration_for, rules_on_percentiles
from nae_monitor.cli.checks.check import Check, problem_checks
from nae_monitor.detect import load_rules
from nae_monitor.errors import ConfigurationError
from nae_monitor.settings import Settings


def calibration(settings: Settings, nla_id: str) -> list[Check]:
    """That the set fits the pair; without one, which rules cannot know their percentiles."""
    try:
        found = calibration_for(settings, nla_id)
    except ConfigurationError as error:
        return problem_checks("calibration", error)
    if found is not None:
        where = settings.detect.calibration or "shipped with the reconstructor"
        what = f"{found.metric} of {len(found.values)} decodes of {nla_id}, {where}"
        return [Check("calibration", "ok", what)]
    try:
        names = rules_on_percentiles(load_rules(settings.detect.rules))
    except ConfigurationError:
        names = []  # the row of the rules says so
    if names:
        message = f"none: percentiles are unknown to {', '.join(names)}"
        return [Check("calibration", "warning", message, MEND)]
    return [Check("calibration", "ok", "none, and no rule asks for a percentile")]
