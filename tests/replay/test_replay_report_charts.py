"""The overview's counts: alerts over time against a plain count, and what decoding was spent on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from replay_demo_run import write_demo_run
from replay_report_page import report

from nae_monitor.recording import Recording
from nae_monitor.records import FindingState, Severity
from nae_monitor.replay.report_spend import Spend, duration
from nae_monitor.replay.report_timeline import MAX_BINS, MAX_RULES, timeline

SECOND = 10**9
YEAR_2026_S = 1_767_225_600


@dataclass(frozen=True)
class Raised:
    severity: str
    rule: str
    when_unix_ns: int


times = (
    st.just(0)
    | st.integers(1, 2**62 - 1)
    | st.integers(0, 400).map(lambda s: (YEAR_2026_S + s * 3600) * SECOND)
)
raised = st.builds(
    Raised, st.sampled_from([s.value for s in Severity]), st.sampled_from("abc"), times
)


@given(st.lists(raised, max_size=30), st.lists(times, max_size=30))
def test_every_dated_alert_and_request_is_counted_in_the_bin_of_its_time(
    alerts: list[Raised], starts: list[int]
) -> None:
    found = timeline(alerts, starts)
    dated = [alert for alert in alerts if alert.when_unix_ns]
    if found is None:
        assert not dated
        assert not any(starts)
        return

    def place(unix_ns: int) -> int:
        return (unix_ns // SECOND - found.start_s) // found.width_s

    assert 1 <= found.bins <= MAX_BINS
    assert found.undated == len(alerts) - len(dated)
    assert Counter({(p.bin, p.severity): p.count for p in found.pieces}) == Counter(
        (place(a.when_unix_ns), a.severity) for a in dated
    )
    assert {(row.severity, row.name, c.bin): c.count for row in found.rules for c in row.cells} == (
        Counter((a.severity, a.rule, place(a.when_unix_ns)) for a in dated)
    )
    assert {c.bin: c.count for c in found.requests.cells} == Counter(
        place(start) for start in starts if start
    )
    assert all(
        0 <= p.bin < found.bins and p.y >= 0 and p.y + p.height < 1.001 for p in found.pieces
    )
    assert all(found.span(p.bin) for p in found.pieces)


def test_the_width_of_a_bin_is_round_and_told_in_words() -> None:
    def width(seconds: int) -> str:
        start = YEAR_2026_S * SECOND
        found = timeline([], [start, start + seconds * SECOND])
        assert found is not None
        return found.width

    assert [width(s) for s in (0, 60, 3600, 86_400, 30 * 86_400)] == [
        "second",
        "2 seconds",
        "2 minutes",
        "hour",
        "day",
    ]


def test_the_gravest_rules_come_first_and_those_left_out_are_counted() -> None:
    when = YEAR_2026_S * SECOND
    alerts = [Raised("low", f"low-{n}", when) for n in range(MAX_RULES)]
    found = timeline([*alerts, Raised("critical", "worst", when)], [])
    assert found is not None
    assert found.rules[0].name == "worst"
    assert (len(found.rules), found.further_rules) == (MAX_RULES, 1)


def test_spending_by_reason_adds_up_to_the_recording(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    recording = Recording.open(tmp_path / "run")
    rows = list(recording.activations())
    hits = {
        (f.request_id, f.position) for f in recording.findings() if f.state is FindingState.MATCH
    }
    spend = Spend()
    for row in recording.activation_columns(
        ["request_id", "position", "reason", "decoded", "dropped_reason", "decode_tokens",
         "decode_seconds", "reused"]
    ):  # fmt: skip
        spend.add(row, (row["request_id"], row["position"]) in hits)
    decoded = [row for row in rows if row.decoding]
    assert spend.decodes == len(decoded)
    assert {reason: s.chosen for reason, s in spend.by_reason.items()} == Counter(
        row.activation.reason.value for row in rows
    )
    assert {reason: s.decoded for reason, s in spend.by_reason.items()} == Counter(
        row.activation.reason.value for row in decoded
    )
    assert sum(s.matched for s in spend.by_reason.values()) == len(hits)
    assert spend.lost == {"budget": len(rows) - len(decoded)}
    assert spend.text_tokens == sum(row.decoding.tokens for row in decoded if row.decoding)
    assert spend.per_request is not None
    assert spend.per_request[1] == max(
        Counter(row.activation.request.request_id for row in decoded).values()
    )
    text = " ".join(report(tmp_path / "run").text.split())
    assert f"{len(decoded):,} decodes took {duration(spend.seconds)}" in text
    assert f"Chosen and not decoded: budget {len(rows) - len(decoded)}." in text


def test_the_overview_counts_alerts_by_severity_rule_and_request_over_time(tmp_path: Path) -> None:
    write_demo_run(tmp_path / "run")
    findings = Recording.open(tmp_path / "run").findings()
    alerts = {
        (f.request_id, f.rule_name, f.severity.value)
        for f in findings
        if f.state is FindingState.MATCH
    }
    page = report(tmp_path / "run")
    stacks = Counter[str]()
    for tag, attributes in page.tags:
        if tag == "a" and attributes.get("class") == "by-rule mono":
            assert attributes["data-rule"] in {rule for _, rule, _ in alerts}
            stacks["rules"] += 1
    text = " ".join(page.text.split())
    assert stacks["rules"] == len({(rule, severity) for _, rule, severity in alerts})
    assert "Alerts over time per 10 minutes, UTC" in text
    assert "All requests" in text


def test_durations_read_as_a_person_would_say_them() -> None:
    assert [duration(s) for s in (0.25, 119.0, 185.0, 9000.0)] == [
        "0.2 s",
        "119.0 s",
        "3 min 5 s",
        "2.5 h",
    ]
