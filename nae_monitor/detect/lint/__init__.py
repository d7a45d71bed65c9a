"""Lint: what is wrong with rules, and what is right and will still not do what it seems to."""

from nae_monitor.detect.lint.diagnostics import CODES, Diagnostic, Edit
from nae_monitor.detect.lint.run import LintReport, fix, lint
from nae_monitor.detect.lint.sarif import to_sarif
from nae_monitor.detect.lint.subject import LintOptions

__all__ = ["CODES", "Diagnostic", "Edit", "LintOptions", "LintReport", "fix", "lint", "to_sarif"]
