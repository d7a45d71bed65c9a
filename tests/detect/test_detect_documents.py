from pathlib import Path
from typing import Any

import pytest
import yaml
from detect_support import HEADER, SIMPLE, rules_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.detect import RuleSet, run_inline_tests
from nae_monitor.errors import RuleError

V = "schema_version: 1\n"
LIST = V + "list: words\nitems: [hide, conceal]\n"
MACRO = V + "macro: talk\nselection: {keywords: {any: [{list: words}, mask]}}\n"
USES_LIST = SIMPLE.replace("[hide]", "[veil, {list: words}]")
USES_MACRO = SIMPLE.replace("{keywords: {any: [hide]}}", "{macro: talk}")
FILTER = (
    V + "name: lab\nfilter: {rules: ['a_*'], reason: r, "
    "when: {field: request.tenant, keywords: {any: [lab]}}}\n"
)
AGGREGATION = (
    HEADER.replace("6b1f0c1e", "8b1f0c1e").replace("a_rule", "sustained")
    + "aggregation: {type: event_count, rules: [a_rule], window: {tokens: 256}, "
    "condition: {gte: 3}, min_samples: 4}\n"
)


def problems(tmp_path: Path, *texts: str) -> str:
    with pytest.raises(RuleError) as caught:
        rules_of(tmp_path, *texts)
    return str(caught.value)


def hits(tests: str) -> str:
    """Write out ``{@ 10}`` and ``{+ 10}``: hits of the first and of the second rule."""
    return tests.replace("{@ ", "{rule: a_rule, at: ").replace("{+ ", "{rule: b_rule, at: ")


def outcomes(rules: RuleSet) -> list[tuple[str, str]]:
    return [(result.outcome, result.message) for result in run_inline_tests(rules)]


def test_lists_and_macros_stand_for_what_they_hold(tmp_path: Path) -> None:
    (rule,) = rules_of(tmp_path, USES_LIST, LIST, MACRO).rules
    matcher: Any = rule.selections["hide_kw"].matcher
    assert matcher.any_of == ("veil", "hide", "conceal")
    (rule,) = rules_of(tmp_path, USES_MACRO, LIST, MACRO).rules
    matcher = rule.selections["hide_kw"].matcher
    assert matcher.any_of == ("hide", "conceal", "mask")


def test_the_fingerprint_follows_what_a_list_holds(tmp_path: Path) -> None:
    before = rules_of(tmp_path, USES_LIST, LIST).fingerprint
    assert rules_of(tmp_path, USES_LIST, LIST.replace("conceal", "mask")).fingerprint != before


def test_unknown_lists_macros_and_rules_are_placed_and_hinted(tmp_path: Path) -> None:
    texts = USES_LIST.replace("list: words", "list: wrods"), LIST, FILTER.replace("a_*", "b_rule")
    found = problems(tmp_path, *texts)
    assert "rule0.yaml:7:46: no list 'wrods' (did you mean 'words'?) [NM110]" in found
    assert "rule2.yaml:3:18: rules[0] names no rule: 'b_rule' (did you mean 'a_rule'?)" in found
    assert "no macro 'talk'" in problems(tmp_path, USES_MACRO, LIST, SIMPLE.replace("hide", "x"))


def test_macros_that_use_themselves_and_floods_of_lists_end(tmp_path: Path) -> None:
    loop = V + "macro: talk\nselection: {macro: talk}\n"
    assert "inside one another" in problems(tmp_path, USES_MACRO, loop)
    many = ", ".join(["{list: words}"] * 900)
    flood = SIMPLE.replace("[hide]", f"[{many}]")
    long = V + "list: words\nitems: [" + ", ".join(["word"] * 900) + "]\n"
    assert "more than 20000 values" in problems(tmp_path, flood, long)


def test_an_override_replaces_and_appends(tmp_path: Path) -> None:
    override = (
        V + "override: {rule: a_rule, severity: replace, risk_score: replace, tags: append}\n"
        "severity: high\nrisk_score: 60\ntags: [b.c]\n"
    )
    (rule,) = rules_of(tmp_path, SIMPLE + "tags: [a.b]\n", override).rules
    assert (rule.severity.value, rule.risk_score, rule.tags) == ("high", 60, ("a.b", "b.c"))


def test_problems_of_an_overridden_value_are_placed_in_the_override(tmp_path: Path) -> None:
    override = V + "override: {rule: a_rule, severity: replace}\nseverity: hgih\n"
    assert "rule1.yaml:3:1: severity is 'hgih'" in problems(tmp_path, SIMPLE, override)


@pytest.mark.parametrize(
    "body",
    [
        "{rule: a_rule}\n",
        "{rule: nobody, severity: replace}\nseverity: high\n",
        "{rule: a_rule, id: replace}\nid: x\n",
        "{rule: a_rule, severity: replace}\n",
        "{rule: a_rule, severity: append}\nseverity: high\n",
        "{rule: a_rule, severity: change}\nseverity: high\n",
        "{rule: a_rule, severity: replace}\nseverity: high\ntgas: [a]\n",
        "[]\n",
    ],
)
def test_faulty_overrides_are_refused(tmp_path: Path, body: str) -> None:
    assert "rule1.yaml" in problems(tmp_path, SIMPLE, V + "override: " + body)


def test_a_filter_is_an_exception_of_every_rule_it_names(tmp_path: Path) -> None:
    tests = (
        "tests:\n  - {explanation: they hide, expect: match}\n"
        "  - {explanation: they hide, request: {tenant: lab}, expect: no_match}\n"
    )
    for rules in ("['a_*']", "any"):
        loaded = rules_of(tmp_path, SIMPLE + tests, FILTER.replace("['a_*']", rules))
        assert outcomes(loaded) == [("passed", ""), ("passed", "")]


def test_an_aggregation_rule_loads_and_its_examples_are_run(tmp_path: Path) -> None:
    tests = """tests:
  - {hits: [{@ 10}, {@ 90}, {@ 200}], samples: 8, expect: match}
  - {hits: [{@ 10}, {@ 300}, {@ 700}], samples: 24, expect: no_match}
  - {hits: [{@ 10}, {@ 90}, {@ 200}], expect: undecided}
  - {hits: [{@ 10}, {@ 90}, {@ 200}], rate: 0.1, expect: match}
  - {hits: [{@ 10}], samples: 8, expect: match}
"""
    rules = rules_of(tmp_path, SIMPLE, AGGREGATION + hits(tests))
    assert len(rules) == 2
    assert outcomes(rules) == [
        *[("passed", "")] * 4,
        ("failed", "no_match, expected match"),
    ]


def test_steps_in_order_are_told_from_steps_out_of_order(tmp_path: Path) -> None:
    second = SIMPLE.replace("6b1f0c1e", "7b1f0c1e").replace("name: a_rule", "name: b_rule")
    rule = (
        AGGREGATION[: AGGREGATION.index("aggregation:")]
        + """
aggregation:
  {type: temporal_ordered, rules: [a_rule, b_rule], group_by: [session_id], window: {time: 30m}}
suppress: {group_by: [session_id], for: 10m}
actions: [{alert: {routes: [oncall]}}]
tests:
  - {hits: [{@ 60}, {+ 900}], expect: {match: true, routes: [oncall]}}
  - {hits: [{+ 60}, {@ 900}], expect: no_match}
  - {hits: [{@ 60}, {+ 9000}], expect: no_match}
  - {hits: [{@ 0}, {+ 60}, {+ 90}], expect: {suppressed: 1}}
"""
    )
    assert outcomes(rules_of(tmp_path, SIMPLE, second, hits(rule))) == [("passed", "")] * 4


def test_a_rules_own_example_tests_suppression_and_routes(tmp_path: Path) -> None:
    rule = (
        SIMPLE
        + """suppress: {for: 10m}
actions: [{alert: {routes: [oncall]}}]
tests:
  - explanation: hide
    hits: [{at: 0}, {at: 60}, {at: 700}]
    expect: {suppressed: 1, routes: [oncall]}
  - {explanation: hide, hits: [{at: 0}, {at: 60}], expect: {suppressed: 0}}
"""
    )
    message = "1 of 2 alerts suppressed, expected 0"
    assert outcomes(rules_of(tmp_path, rule)) == [("passed", ""), ("failed", message)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rules: [a_rule]", "rules: [a_rlue]"), "no rule 'a_rlue' (did you mean 'a_rule'?)"),
        (("rules: [a_rule]", "rules: []"), "lists no rule"),
        (("tokens: 256", "tokens: 256, time: 1h"), "needs one measure"),
        (("tokens: 256", "time: soon"), "not a duration"),
        (("min_samples: 4", "min_samples: 400"), "cannot fit"),
        (("min_samples: 4", "group_by: [session_id]"), "no common count"),
        (("min_samples: 4", "absent: [a_rule]"), "both asked for and barred"),
        (("condition: {gte: 3}", "condition: {}"), "compares with nothing"),
        (("condition: {gte: 3}, ", ""), "lacks its condition"),
        (("event_count", "temporal"), "takes no condition"),
        (("event_count", "sometimes"), "one of: event_count"),
        (("event_count", "event_rate"), "between 0 and 1"),
        (("min_samples", "min_smaples"), "did you mean 'min_samples'?"),
    ],
)
def test_a_faulty_aggregation_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in AGGREGATION
    assert message in problems(tmp_path, SIMPLE, AGGREGATION.replace(*change))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("suppress: {}", "holds nothing back"),
        ("suppress: {for: 10}", "not a duration"),
        ("suppress: {max_alerts: 30}", "30/h"),
        ("suppress: {for: 1m, overflow: count}", "no effect"),
        ("suppress: {for: 1m, group_by: ['a b']}", "not a request key"),
        ("actions: [{alert: {routes: ['a b']}}]", "not a route"),
        ("actions: [{alert: {routes: [a]}}, {alert: {routes: [b]}}]", "there twice"),
        ("actions: [{raise_sampling: {}}]", "lacks its rate"),
        ("actions: [{raise_sampling: {rate: 2}}]", "between 0 and 1"),
        ("actions: [{stop_generation: {mode: now}}]", "one of: shadow, enforce"),
        ("actions: [stop_generation]", "stands alone"),
        ("actions: [{tag: [a], capture: true}]", "an item is one action"),
        ("required_nla: {}", "asks for nothing"),
        ("related: [{id: x, type: derived}]", "not a UUID"),
    ],
)
def test_faulty_responses_are_refused(tmp_path: Path, line: str, message: str) -> None:
    assert message in problems(tmp_path, SIMPLE + line + "\n")


def test_responses_are_read(tmp_path: Path) -> None:
    (rule,) = rules_of(
        tmp_path,
        SIMPLE
        + """enforcement: enforce
suppress: {group_by: [request.team, rule_id], for: 2h, max_alerts: 5/10m, overflow: count}
actions:
  - alert: {routes: [oncall, siem]}
  - raise_sampling: {rate: 1.0, scope: session, tokens: 64}
  - stop_generation: {min_fidelity: 0.7, min_hits: 2}
  - tag: [x.y]
  - capture
required_nla: {base_model: smollm2-135m-instruct, layer: 20}
related: [{id: 7b1f0c1e-3c1d-4c7e-9a53-0d7f6a4b9e01, type: derived}]
""",
    ).rules
    suppress, actions = rule.suppress, rule.actions
    assert suppress is not None
    assert (suppress.group_by, suppress.quiet_ns) == (("team",), 7_200 * 10**9)
    assert (suppress.max_alerts, suppress.period_ns) == (5, 600 * 10**9)
    assert (actions.routes, actions.tags, actions.capture) == (("oncall", "siem"), ("x.y",), True)
    assert actions.stop_generation is not None
    assert (actions.stop_generation.mode, actions.stop_generation.min_hits) == ("enforce", 2)
    assert rule.required_nla is not None
    assert rule.required_nla.admits("SmolLM2-135M-Instruct", 20)
    assert not rule.required_nla.admits("smollm2-135m-instruct", 21)


def loads_or_explains(tmp_path: Path, text: str) -> bool:
    """True for a rule set or a RuleError with problems; any other exception passes through."""
    try:
        return len(rules_of(tmp_path, SIMPLE, text)) >= 1
    except RuleError as error:
        return bool(error.problems)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["aggregation", "filter", "list", "macro", "override", "suppress"]),
    value=st.recursive(
        st.none() | st.integers() | st.sampled_from(["a_rule", "x", ""]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["rule", "rules", "when", "list", "macro", "type", "tests"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=5,
    ),
)
def test_any_value_of_any_kind_loads_or_raises_rule_error(
    tmp_path: Path, key: str, value: object
) -> None:
    text = V + yaml.safe_dump({key: value, "items": value, "selection": value, "name": "n"})
    assert loads_or_explains(tmp_path, text)
