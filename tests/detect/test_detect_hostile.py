"""What a hostile or careless author writes: diagnostics, never a traceback and never a hang."""

import copy
import subprocess
import sys
from typing import Any

import yaml
from detect_support import HEADER
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.detect.aggregation_reader import read_aggregation_rule
from nae_monitor.detect.rule_reader import read_rule
from nae_monitor.errors import Problem
from nae_monitor.strict_yaml import Document

WHOLE = yaml.safe_load(
    HEADER
    + """\
version: 2
date: 2026-11-22
related: [{id: 6b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e02, type: similar}]
required_nla: {base_model: m, layer: 20}
references: [a]
scope: {phase: [prompt, tool], min_token_index: 3, max_norm: 9.5, models: ['*'], layers: [20]}
detection:
  a: {keywords: {any: [hide], all: [user]}, quotes: outside}
  b: {regex: ['\\bhid\\w+'], field: prompt, case: true}
  c: {fuzzy: {any: [hide its reasoning], score: 88, scorer: ratio, exact: true}}
  d: {semantic: {exemplars: [it hides], negatives: [it shows], threshold: 0.5, margin: 0.1}}
  e: {activation: {direction: d.safetensors#u, layer: 20, measure: projection, gte: 2}}
  f: {field: score.x, value: {gte: 1, lte: 3, in: [2]}}
  condition: (a and not b) or 2 of them
exceptions: [{name: x, when: {field: token, keywords: {any: [hi]}}, reason: r, expires: 2027-01-01}]
fidelity: {metric: percentile, min: 5, below: tag, unscored: pass, min_support: 0.1}
suppress: {group_by: [request_id], for: 10m, max_alerts: 3/h, overflow: count}
actions: [alert: {routes: [a]}, tag: [b]]
tests: [{explanation: hide, scores: {d: 0.1}, request: {k: v}, hits: [{at: 1}], expect: match}]
"""
)
OFTEN = yaml.safe_load(
    HEADER
    + """\
aggregation:
  type: event_count
  rules: [a]
  window: {tokens: 9}
  group_by: [request_id]
  condition: {gte: 2}
  min_samples: 2
  absent: [b]
tests: [{hits: [{rule: a, at: 1}], samples: 2, expect: {match: false}}]
"""
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path]
    for key, inner in items:
        nested = isinstance(inner, dict | list)
        found += paths_in(inner, (*path, key)) if nested else [(*path, key)]
    return found


KEYS = sorted({str(key) for whole in (WHOLE, OFTEN) for path in paths_in(whole) for key in path})
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.dates()
    | st.text(max_size=20)
    | st.sampled_from([*KEYS, "a" * 30_000, "2 of them", "(" * 40, "\ud800", "\0"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


def replaced(whole: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.deepcopy(whole)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    return changed


def sound(rule: object, problems: list[Problem]) -> bool:
    """Either a rule or problems, each of which says where it is."""
    return (rule is None) == bool(problems) and all(p.where.file and p.message for p in problems)


def test_the_untouched_documents_are_sound() -> None:
    rule, problems = read_rule(Document(WHOLE, {}, "x.yaml"))
    assert rule is not None, problems
    often, problems = read_aggregation_rule(Document(OFTEN, {}, "x.yaml"))
    assert often is not None, problems


@settings(max_examples=60)
@given(st.sampled_from(paths_in(WHOLE)), values)
def test_a_rule_with_anything_anywhere_is_a_rule_or_problems(path: Any, new: Any) -> None:
    assert sound(*read_rule(Document(replaced(WHOLE, path, new), {}, "x.yaml")))


def test_tens_of_thousands_of_groups_take_bounded_memory() -> None:
    """RE2 keeps something for every capturing group in every state, unless told not to."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
from nae_monitor.detect.matchers import PatternError, compile_pattern
try:
    pattern = compile_pattern("(" * 40_000 + "hide" + ")" * 40_000, False)
    assert pattern.search("plans to hide it").span() == (9, 13)
except PatternError as problem:
    assert problem.code == "NM201"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
