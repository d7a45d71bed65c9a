"""The rule packs."""

from __future__ import annotations

from nae_monitor.cli.checks.check import Check, problem_checks
from nae_monitor.detect import load_rules
from nae_monitor.detect.packs import nothing_to_match
from nae_monitor.errors import ConfigurationError
from nae_monitor.settings import Settings


def rules(settings: Settings) -> list[Check]:
    """That every rule loads."""
    try:
        loaded = load_rules(settings.detect.rules)
    except ConfigurationError as error:
        return problem_checks("rules", error)
    where = ", ".join(settings.detect.rules)
    if not loaded.is_armed:
        return [Check("rules", "fault", nothing_to_match(loaded).message, "name rules that match")]
    return [Check("rules", "ok", f"{len(loaded)} from {where} ({loaded.fingerprint[:16]})")]
