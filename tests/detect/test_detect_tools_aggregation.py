"""Aggregation rules and suppression in lock, diff and backtest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detect_support import HEADER, SIMPLE, rules_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nae_monitor.detect import Judge, RuleSet
from nae_monitor.detect.response import Suppression
from nae_monitor.detect.tools.alerting import Alerting, alert_among
from nae_monitor.detect.tools.backtest import Backtest, backtest
from nae_monitor.detect.tools.corpus import Sample, read_corpus, sample_of
from nae_monitor.detect.tools.difference import rule_changes, verdict_changes
from nae_monitor.detect.tools.explain_windows import explain_aggregation
from nae_monitor.detect.tools.journal import Journal
from nae_monitor.detect.tools.lock import lock_faults, lock_of
from nae_monitor.errors import InputDataError

TWICE = HEADER.replace("9e01", "9e02").replace("a_rule", "twice") + (
    "aggregation: {type: event_count, rules: [a_rule], window: {tokens: 10}, condition: {gte: 2}}\n"
)
IN_SESSION = TWICE.replace("window: {tokens: 10}", "window: {time: 60s}, group_by: [session_id]")
SESSION: dict[str, Any] = {"request": {"session_id": "x"}}
QUIET = "suppress: {group_by: [session_id], for: 1h}\n"


def row(position: int, text: str = "hide", request_id: str = "r", **fields: Any) -> Sample:
    value = {"request_id": request_id, "position": position, "explanation": text, **fields}
    return sample_of(value, f"{request_id}:{position}")


def tallied(rules: RuleSet, samples: list[Sample], **options: Any) -> Backtest:
    return backtest(Judge(rules), samples, **options)


def test_a_lock_holds_aggregation_rules_to_their_version(tmp_path: Path) -> None:
    locked = lock_of(rules_of(tmp_path, SIMPLE, TWICE))
    assert len(locked) == 2
    changed = lock_of(rules_of(tmp_path, SIMPLE, TWICE.replace("gte: 2", "gte: 3")))
    (fault,) = lock_faults(locked, changed)
    assert fault.startswith("twice: changed")


def test_a_changed_aggregation_is_named_key_by_key(tmp_path: Path) -> None:
    old = rules_of(tmp_path, SIMPLE, TWICE)
    (change,) = rule_changes(old, rules_of(tmp_path, SIMPLE, TWICE.replace("gte: 2", "gte: 3")))
    assert (change.rule_name, change.kind) == ("twice", "changed")
    assert [key for key, _, _ in change.keys] == ["aggregation.condition.gte"]


def test_verdicts_of_windows_are_compared_too(tmp_path: Path) -> None:
    old = Judge(rules_of(tmp_path, SIMPLE, TWICE))
    new = Judge(rules_of(tmp_path, SIMPLE, TWICE.replace("tokens: 10", "tokens: 30")))
    samples = [row(10), row(15), row(10, request_id="other"), row(35, request_id="other")]
    found = [(v.sample_id, v.rule_name, v.kind) for v in verdict_changes(old, new, samples)]
    assert found == [("other:35", "twice", "new")]


def test_an_aggregation_is_counted_by_request(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE, TWICE)
    samples = [row(1), row(5), row(9), row(1, request_id="s"), row(50, request_id="s", model="m")]
    tally = tallied(rules, samples).tallies["twice"]
    assert tally.is_aggregation
    assert (tally.rate.hits, tally.rate.trials) == (1, 2)
    assert (tally.request_rate.hits, tally.request_rate.trials) == (1, 2)
    assert tally.alerts == {"sent": 1}


def test_windows_over_requests_need_no_order_of_reading(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE, IN_SESSION)
    samples = [
        row(1, request_id="late", time_unix_s=1_050, **SESSION),
        row(1, request_id="far", time_unix_s=2_000, **SESSION),
        row(1, request_id="early", time_unix_s=1_000, **SESSION),
    ]
    for order in (samples, samples[::-1]):
        tally = tallied(rules, order).tallies["twice"]
        assert tally.requests_matched == {"late"}


def test_windows_of_time_are_undecided_where_no_time_is_known(tmp_path: Path) -> None:
    tally = tallied(rules_of(tmp_path, SIMPLE, IN_SESSION), [row(1), row(2)]).tallies["twice"]
    assert (tally.rate.hits, tally.undecided) == (0, 1)


def test_an_aggregation_is_expected_of_a_request(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE, TWICE)
    samples = [row(1), row(5), row(1, request_id="s")]
    wanted = {"r": frozenset({"a_rule", "twice"}), "s": frozenset({"a_rule", "twice"})}
    found = tallied(rules, samples, expectations=wanted)
    assert [(d.sample_id, d.rule_name) for d in found.missing] == [("s", "twice")]
    assert found.unexpected == []
    told = tallied(rules, [row(1, expect=["a_rule", "twice"]), row(5, expect=["a_rule"])])
    assert (told.missing, told.unexpected) == ([], [])
    plain = tallied(rules, [row(1, expect=["a_rule"]), row(5, expect=["a_rule"])])
    assert [(d.sample_id, d.rule_name) for d in plain.unexpected] == [("r", "twice")]


def test_lines_of_one_request_stand_behind_one_another(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    line = '{"request_id": "r", "explanation": "hide"}\n'
    file.write_text(line * 2)
    first, second = (sample.activation.position for sample in read_corpus([file]))
    assert second == first + 1


def test_rates_have_a_group_for_each_model_layer_and_phase(tmp_path: Path) -> None:
    samples = [row(1, model="m", layer=3), row(2, "no", model="m", layer=3, phase="prompt")]
    tally = tallied(rules_of(tmp_path, SIMPLE), samples).tallies["a_rule"]
    assert {group: (r.hits, r.trials) for group, r in tally.group_rates().items()} == {
        ("m", 3, "completion"): (1, 1),
        ("m", 3, "prompt"): (0, 1),
    }


def test_alerts_are_counted_as_suppression_lets_them_through(tmp_path: Path) -> None:
    samples = [
        row(1, request_id=f"r{n}", time_unix_s=1_000 + 1_000 * n, **SESSION) for n in range(5)
    ]
    rules = rules_of(tmp_path, SIMPLE + QUIET)
    assert tallied(rules, samples).tallies["a_rule"].alerts == {"sent": 2, "repeat": 3}
    untimed = tallied(rules, [row(1), row(1, request_id="s")])
    assert untimed.tallies["a_rule"].alerts == {"untimed": 2}


def test_a_limit_holds_alerts_back_and_the_next_one_tells_of_them(tmp_path: Path) -> None:
    (rule,) = rules_of(tmp_path, SIMPLE).rules
    alerting = Alerting()
    for second in (1, 2, 3, 100):
        sample = row(1, request_id=f"r{second}", time_unix_s=second)
        alerting.saw(sample.activation)
        alerting.hit(sample.activation.request, rule, 1, rule.severity)
    limit = Suppression(max_alerts=1, period_ns=10 * 10**9)
    found = alerting.fates({rule.id: limit})
    assert [one.fate for one in found] == ["sent", "overflow", "overflow", "sent"]
    assert found[-1].alert.held_back == 2


class Counting(Judge):
    """Counts what it is asked."""

    asked = 0

    def weigh(self, *given: Any) -> Any:
        self.asked += 1
        return super().weigh(*given)


def counts(found: Backtest) -> Any:
    return {
        name: (tally.groups, tally.undecided, tally.requests_matched, tally.alerts)
        for name, tally in found.tallies.items()
    }


@pytest.mark.parametrize("cut_bytes", [0, 1, 40])
def test_a_run_cut_short_goes_on_and_finds_the_same(tmp_path: Path, cut_bytes: int) -> None:
    rules = rules_of(tmp_path, SIMPLE, TWICE)
    samples = [row(place, text) for place, text in enumerate(["hide", "seek", "hide", "no"] * 30)]
    whole = tallied(rules, samples)
    path = tmp_path / "journal"
    with Journal(path, {"rules": rules.fingerprint}) as journal:
        tallied(rules, samples[:70], journal=journal)
    path.write_bytes(path.read_bytes()[: -cut_bytes or None])
    judge = Counting(rules)
    with Journal(path, {"rules": rules.fingerprint}) as journal:
        again = backtest(judge, samples, journal=journal)
        assert journal.recalled + judge.asked == len(samples)
        assert journal.recalled >= 68
    assert counts(again) == counts(whole)
    with Journal(path, {"rules": rules.fingerprint}) as journal:
        assert counts(backtest(judge, samples, journal=journal)) == counts(whole)
        assert journal.recalled == len(samples)


def test_a_journal_of_other_rules_or_texts_is_refused(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE)
    path = tmp_path / "journal"
    with Journal(path, {"rules": rules.fingerprint}) as journal:
        tallied(rules, [row(1)], journal=journal)
    with pytest.raises(InputDataError, match="written under other rules"):
        Journal(path, {"rules": "others"})
    with (
        Journal(path, {"rules": rules.fingerprint}) as journal,
        pytest.raises(InputDataError, match="the corpus is not the one"),
    ):
        tallied(rules, [row(1, "other text")], journal=journal)


@pytest.mark.parametrize("content", [b"nonsense\n", b"[]\n", b"x" * 2_000_000, b'{"a": 1}\n'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(InputDataError, match="journal"):
        Journal(path, {"rules": "x"})
    assert path.read_bytes() == content


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, {}):
        pass
    path.write_bytes(path.read_bytes() + b'["r:1", "x", 3, []]\n')
    with Journal(path, {}) as journal, pytest.raises(InputDataError, match="is damaged"):
        journal.recall(row(1))


def opened(rules: RuleSet, samples: list[Sample], wanted: str = "") -> Any:
    (rule,) = rules.aggregations
    return explain_aggregation(rules, rule, samples, wanted=wanted)


def test_the_window_that_matched_is_laid_open(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE, TWICE)
    found = opened(rules, [row(1), row(3, "seek"), row(5), row(40)])
    assert (found.outcome.value, found.samples, found.hits) == ("match", 4, {"a_rule": 3})
    report = found.nearest
    assert (report.anchor.position, report.samples, report.low) == (5, 3, 2)
    assert [(hit.rule_name, hit.position) for hit in report.hits] == [("a_rule", 1), ("a_rule", 5)]
    assert {state.value: n for state, n in found.windows.items()} == {"match": 1, "no_match": 2}


def test_without_a_match_the_fullest_window_is_shown(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE, TWICE.replace("gte: 2", "gte: 3"))
    found = opened(rules, [row(1), row(30), row(35)])
    assert (found.outcome.value, found.nearest.anchor.position, found.nearest.low) == (
        "no_match",
        35,
        2,
    )


def test_a_window_too_thin_to_judge_says_so(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE, TWICE.replace("gte: 2}", "gte: 2}, min_samples: 5"))
    found = opened(rules, [row(1), row(5)])
    assert found.outcome.value == "undecided"
    assert found.why == "samples: the window holds 2, the rule asks for 5"


def test_one_request_can_be_asked_for(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, SIMPLE, TWICE)
    samples = [row(1), row(5), row(1, request_id="s")]
    assert opened(rules, samples, "s").outcome.value == "no_match"
    assert opened(rules, samples, "r").outcome.value == "match"
    assert opened(rules, samples, "r:5").nearest.anchor.position == 5


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("rs"), st.integers(0, 30), st.sampled_from(["hide", "no"])),
        unique_by=lambda one: one[:2],
    ),
    kind=st.sampled_from([TWICE, IN_SESSION, TWICE.replace("tokens: 10", "samples: 3")]),
)
def test_windows_laid_open_agree_with_the_correlator(
    tmp_path: Path, rows: list[tuple[str, int, str]], kind: str
) -> None:
    samples = [row(n, text, name, time_unix_s=1 + 5 * n, **SESSION) for name, n, text in rows]
    rules = rules_of(tmp_path, SIMPLE, kind)
    found = opened(rules, samples)
    assert found.windows[found.outcome] > 0 or found.outcome.value == "no_match"
    matched = tallied(rules, samples).tallies["twice"].requests_matched
    assert (found.outcome.value == "match") == bool(matched)


def test_a_row_knows_what_became_of_its_alert(tmp_path: Path) -> None:
    samples = [row(1, request_id=f"r{n}", time_unix_s=1_000 + n, **SESSION) for n in range(3)]
    samples.append(row(1, "no", request_id="other", time_unix_s=1_000))
    (rule,) = rules_of(tmp_path, SIMPLE + QUIET).rules
    fates = [alert_among(rule, sample, samples) for sample in samples]
    assert [one and one.fate for one in fates] == ["sent", "repeat", "repeat", None]
