from __future__ import annotations

import io
from typing import Any

from alert_parts import CANARIES, make_alert, make_evidence, make_policy, wait_until
from rich.console import Console

from nae_monitor.alert.console import ConsoleSink, visible
from nae_monitor.alert.event import to_event
from nae_monitor.health import Health
from nae_monitor.records import Alert, Span


def shown(content: str, *alerts: Alert) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=False)
    sink = ConsoleSink(make_policy(content), Health(), console=console)
    for alert in alerts:
        sink.emit(alert)
    assert sink.close(10)
    return out.getvalue()


def test_an_alert_is_one_block_with_title_rule_and_place() -> None:
    text = shown("full", make_alert(1))
    assert "HIGH Plans to hide something [rule-1]" in text
    assert "request r1 · token 12 to 14 · 2 findings" in text
    assert "FVE 0.50" in text
    assert CANARIES["explanation"] in text


def test_without_full_only_a_prefix_of_the_hash_shows() -> None:
    text = shown("hash", make_alert(1))
    digest = make_policy().digest(CANARIES["explanation"])
    assert digest[:24] in text
    assert digest not in text
    assert "canary" not in text
    assert "hmac" not in shown("none", make_alert(1))


def test_an_unknown_fve_is_said() -> None:
    assert "FVE unknown" in shown("hash", make_alert(evidence=(make_evidence(fve=None),)))


def test_nothing_in_an_alert_can_drive_the_terminal_or_its_markup() -> None:
    text = shown("full", make_alert(title="[red]x\x1b[2J\x07\x9b\u202e[/red]"))
    assert "[red]x" in text
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    assert visible("a\nb\tc") == "a b c"


def test_support_is_shown_where_it_was_asked_for_and_unknown_is_not_zero() -> None:
    def line(**finding: Any) -> str:
        return shown("hash", make_alert(evidence=(make_evidence(**finding),)))

    assert "FVE 0.50 · support 0.07" in line(support=0.071, support_asked=True)
    assert "support -0.02" in line(support=-0.02, support_asked=True)
    assert "FVE 0.50 · support unknown" in line(support_asked=True)
    assert "· support" not in line()


def test_how_likely_a_decode_is_unsupported_is_shown_with_its_cost_and_unknown_is_told() -> None:
    def line(**finding: Any) -> str:
        text = shown("hash", make_alert(evidence=(make_evidence(**finding),)))
        return " ".join(text.replace("│", " ").split())  # wherever the width broke the line

    told = line(unsupported=0.31, unsupported_decodes=6, unsupported_s=2.04)
    assert "P(unsupported) 0.31 for 6 decodes, 2.0 s" in told
    assert "P(unsupported) 0.31" in line(unsupported=0.31)
    assert "P(unsupported) unknown" in line()
    assert "P(unsupported) unknown" in line(unsupported=float("nan"))


def test_the_words_that_matched_are_read_once_and_without_what_is_around_them() -> None:
    spans = tuple(
        Span(name, "explanation", start, start + len(text), text)
        for name, start, text in [
            ("a", 0, '"; harmful request, weapons: '),
            ("b", 3, "harmful request, weapons"),
            ("c", 40, "hides it;"),
        ]
    )
    alert = make_alert(evidence=(make_evidence(spans=spans),))
    assert "  matched harmful request, weapons · hides it  " in shown("full", alert)
    for withheld in ("hash", "none"):
        assert "matched" not in shown(withheld, alert)
    policy = make_policy("full")
    (evidence,) = to_event(policy.redact(alert), policy).data["evidences"]
    match = evidence["data"]["matches"][0]  # machines get it whole, with its offsets
    assert (match["start"], match["end"], match["text"]) == (0, 29, spans[0].text)


def test_a_burst_is_shown_without_a_pause_between_alerts(health: Health) -> None:
    screen = io.StringIO()
    sink = ConsoleSink(make_policy(), health, console=Console(file=screen))
    for number in range(200):
        sink.emit(make_alert(number))
    assert sink.close(20)
    assert screen.getvalue().count("request r") == 200
    assert sink._backoff_s == 0.0


def test_a_terminal_that_fails_half_way_repeats_and_loses_nothing(health: Health) -> None:
    class Flaky(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            if self.writes % 5 == 3:
                raise OSError
            return super().write(text)

    screen = Flaky()
    sink = ConsoleSink(make_policy(), health, console=Console(file=screen))
    for number in range(6):
        sink.emit(make_alert(number))
    wait_until(lambda: sink.stats()["delivered"] == 6)
    assert sink.close(20)
    shown = [line.split()[2] for line in screen.getvalue().splitlines() if "request r" in line]
    assert shown == [f"r{n}" for n in range(6)]
