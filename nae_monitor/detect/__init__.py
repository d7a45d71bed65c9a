"""Rules over decoded text: load a pack, judge decodings, run the packs' own tests."""

from nae_monitor.detect.conditions import ConditionError
from nae_monitor.detect.engine import Judge
from nae_monitor.detect.inline_tests import TestResult, run_inline_tests
from nae_monitor.detect.packs import RuleSet, builtin_rules_directory, load_rules
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import Encoder

__all__ = [
    "ConditionError",
    "Encoder",
    "Judge",
    "Rule",
    "RuleSet",
    "TestResult",
    "builtin_rules_directory",
    "load_rules",
    "run_inline_tests",
]
