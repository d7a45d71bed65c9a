from __future__ import annotations

import hashlib
import hmac
import logging
from dataclasses import fields, replace
from typing import Any

import pytest
from alert_parts import CANARIES, KEY_ENV, make_alert, make_evidence, make_policy

from nae_monitor.alert.privacy import CAPTURE_ENV, MAX_CONTENT_CHARS, ContentPolicy
from nae_monitor.records import Finding, FindingState, Severity, Transcript
from nae_monitor.settings import PrivacySettings


def test_hash_is_the_keyed_hmac_sha256_of_the_text() -> None:
    key = KEY_ENV["NAE_MONITOR_HMAC_KEY"].encode()
    expected = hmac.new(key, "täxt".encode(), hashlib.sha256).hexdigest()
    assert make_policy("hash").text("täxt") == f"hmac-sha256:{expected}"


def test_a_missing_key_is_replaced_by_a_random_one_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policies = [ContentPolicy(PrivacySettings(), {}) for _ in range(2)]
    assert policies[0].text("a") == policies[0].text("a") != policies[1].text("a")
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
    assert "NAE_MONITOR_HMAC_KEY" in caplog.text


@pytest.mark.parametrize("content", ["hash", "none"])
def test_a_redacted_alert_holds_no_content(content: str) -> None:
    shown = repr(make_policy(content).redact(make_alert()))
    assert not [name for name, canary in CANARIES.items() if canary in shown]


def test_redacting_keeps_every_field_that_is_no_content() -> None:
    named: dict[str, Any] = {
        "request_id": "r", "position": 7, "rule_id": "i", "rule_name": "n", "rule_version": "v",
        "title": "t", "severity": Severity.LOW, "state": FindingState.MATCH, "fve": 0.25,
        "tags": ("a",), "risk_score": 5, "routes": ("b",), "support": 0.5, "support_asked": True,
        "support_s": 0.125, "unsupported": 0.25, "unsupported_decodes": 4, "unsupported_s": 1.5,
        "undecided": ("x: y",),
    }  # fmt: skip
    assert {*named, "spans"} == {one.name for one in fields(Finding)}
    alert = make_alert(evidence=(make_evidence(**named),))
    (found,) = make_policy("none").redact(alert).evidence
    (span,) = found.finding.spans
    assert span == replace(alert.evidence[0].finding.spans[0], text="")
    assert found.finding == replace(alert.evidence[0].finding, spans=(span,), undecided=())
    assert found.finding.support_s == 0.125
    blank = Transcript(None, None)
    assert found == replace(
        alert.evidence[0], finding=found.finding, token="", explanation="", transcript=blank
    )


def test_full_keeps_every_text() -> None:
    shown = repr(make_policy("full").redact(make_alert()))
    assert all(canary in shown for canary in CANARIES.values())


def test_full_keeps_the_end_of_a_text_that_is_too_long() -> None:
    text = make_policy("full").text("a" * MAX_CONTENT_CHARS + "end")
    assert len(text) == MAX_CONTENT_CHARS
    assert text.startswith("…")
    assert text.endswith("end")


@pytest.mark.parametrize(
    ("asked", "span", "event"),
    [
        ("", "hash", "hash"),
        ("nonsense", "hash", "hash"),
        ("false", "hash", "hash"),
        ("SPAN_ONLY", "full", "hash"),
        ("event_only", "hash", "full"),
        ("SPAN_AND_EVENT", "full", "full"),
        ("true", "full", "full"),
    ],
)
def test_telemetry_shows_text_only_where_both_settings_allow_it(
    asked: str, span: str, event: str
) -> None:
    policy = make_policy("full", **{CAPTURE_ENV: asked})
    assert (policy.span_mode, policy.event_mode) == (span, event)
    closed = make_policy("hash", **{CAPTURE_ENV: "true"})
    assert (closed.span_mode, closed.event_mode) == ("hash", "hash")
