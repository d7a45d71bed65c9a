"""Rules over decoded text: load a pack, judge decodings, run the packs' own tests."""

from nae_monitor.detect.aggregation import AggregationRule, Sample
from nae_monitor.detect.calibration import FILE_NAME as CALIBRATION_FILE
from nae_monitor.detect.calibration import Calibration, read_calibration, write_calibration
from nae_monitor.detect.conditions import ConditionError
from nae_monitor.detect.correlator import Correlator
from nae_monitor.detect.decisions import Decider, Decision
from nae_monitor.detect.engine import Judge
from nae_monitor.detect.hot_reload import LiveRules
from nae_monitor.detect.inline_tests import TestResult, run_inline_tests
from nae_monitor.detect.packs import RuleSet, load_rules
from nae_monitor.detect.schema import Rule
from nae_monitor.detect.semantic import Encoder
from nae_monitor.detect.sources import builtin_rules_directory
from nae_monitor.detect.suppression import Suppressor

__all__ = [
    "CALIBRATION_FILE",
    "AggregationRule",
    "Calibration",
    "ConditionError",
    "Correlator",
    "Decider",
    "Decision",
    "Encoder",
    "Judge",
    "LiveRules",
    "Rule",
    "RuleSet",
    "Sample",
    "Suppressor",
    "TestResult",
    "builtin_rules_directory",
    "load_rules",
    "read_calibration",
    "run_inline_tests",
    "write_calibration",
]
