"""What ``doctor`` looks at, one file a concern. Checks report; they never raise."""

from nae_monitor.cli.checks.check import Check, problem_checks
from nae_monitor.cli.checks.environment import environment
from nae_monitor.cli.checks.models import models
from nae_monitor.cli.checks.places import places
from nae_monitor.cli.checks.rules import rules
from nae_monitor.cli.checks.sinks import sinks
from nae_monitor.cli.checks.workers import workers

__all__ = [
    "Check",
    "environment",
    "models",
    "places",
    "problem_checks",
    "rules",
    "sinks",
    "workers",
]
