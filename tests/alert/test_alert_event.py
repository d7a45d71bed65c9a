from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
from alert_parts import make_alert, make_evidence, make_policy
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from nae_monitor.alert.event import AlertEvent, redacted_event, to_event, to_json
from nae_monitor.records import Alert, Request, Severity, StopOutcome, Transcript


def event_of(alert: Alert, content: str = "hash") -> AlertEvent:
    policy = make_policy(content)
    return to_event(policy.redact(alert), policy)


@cache
def ocsf_validator() -> Any:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema("1.8.0"))
    finding = schema.get_class_schema("detection_finding", profiles=["security_control"])
    return jsonschema.Draft202012Validator(finding)


texts = st.text(st.characters(exclude_categories=[]), max_size=40)


@given(
    texts,
    texts,
    texts,
    st.sampled_from(Severity),
    st.sampled_from(["hash", "full", "none"]),
    st.lists(st.sampled_from(["oncall", "siem", "trust-and-safety"]), unique=True).map(tuple),
    st.sampled_from([None, *StopOutcome]),
)
@settings(deadline=None)  # the schema is compiled in the first example
def test_every_event_is_a_valid_ocsf_finding_and_cloud_event(
    request_id: str,
    session_id: str,
    title: str,
    severity: Severity,
    content: str,
    routes: tuple[str, ...],
    stop: StopOutcome | None,
) -> None:
    request = Request(request_id, request_id, title or "m", session_id=session_id)
    alert = make_alert(request=request, title=title, severity=severity)
    event = event_of(replace(alert, routes=routes, stop=stop), content)
    ocsf_validator().validate(json.loads(event.value()))
    message = KafkaMessage(dict(event.headers()), event.key, event.value())
    read = from_kafka_event(message)
    assert read.get_id() == event.attributes["id"]
    assert read.get_data() == json.loads(event.value())
    structured = JSONFormat().read(None, to_json(event.structured()))
    assert structured.get_attributes()["id"] == event.attributes["id"]


@given(
    texts,
    texts.map(lambda text: text or None),
    st.sampled_from(["hash", "full", "none"]),
    st.booleans(),
    st.none() | st.floats(),
)
def test_building_and_redacting_in_one_step_gives_the_same_event(
    text: str, other: str | None, content: str, support_asked: bool, fve: float | None
) -> None:
    evidence = make_evidence(support=fve, support_asked=support_asked, support_s=0.1, fve=fve)
    evidence = replace(evidence, token=text, explanation=text, transcript=Transcript(other, text))
    alert = replace(make_alert(), evidence=(evidence, make_evidence(13)))
    assert redacted_event(alert, make_policy(content)) == event_of(alert, content)


@given(st.recursive(st.none() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3)))
def test_json_says_what_the_standard_library_would_say(value: Any) -> None:
    oracle = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert to_json(value) == oracle.encode("utf-8", "replace")


def test_headers_are_those_of_the_contract() -> None:
    headers = dict(event_of(make_alert(3)).headers())
    assert headers["content-type"] == b"application/json"
    assert set(headers) - {"content-type"} == {
        "ce_" + name
        for name in (
            *("specversion", "id", "source", "type", "time", "subject", "dataschema"),
            *("partitionkey", "traceparent", "sequence", "severitytext", "severitynumber"),
        )
    }
    assert headers["ce_traceparent"] == b"00-%032x-%016x-01" % (0xABC, 0xDEF)
    assert headers["ce_time"].startswith(b"2023-11-14T22:13:20.123")


def test_the_key_is_the_conversation_or_else_the_request() -> None:
    assert event_of(make_alert()).key == b"session-1"
    assert event_of(make_alert(request=Request("r9", "g", "m"))).key == b"r9"


def test_a_conversation_id_no_header_can_carry_is_replaced_by_its_keyed_hash() -> None:
    event = event_of(make_alert(request=Request("r", "r", "m", session_id="a\nb")))
    assert event.key.startswith(b"hmac-sha256:")


def test_the_same_alert_built_twice_has_the_same_id_and_a_reused_request_id_another() -> None:
    one = event_of(make_alert(1)).attributes["id"]
    assert one == event_of(make_alert(1)).attributes["id"]
    later = Request("r1", "r1", "some/model", started_unix_ns=99)
    assert one != event_of(make_alert(1, request=later)).attributes["id"]


def test_sequences_sort_as_text() -> None:
    sequences = [event_of(make_alert(n)).attributes["sequence"] for n in (2, 9, 10, 1000)]
    assert sequences == sorted(sequences)


def test_fidelity_is_reported_as_itself_and_never_as_confidence() -> None:
    event = event_of(make_alert(evidence=(make_evidence(fve=0.61),)))
    assert event.data["unmapped"]["nae.fve"] == 0.61
    assert "confidence_score" not in event.data


def test_unknown_and_non_finite_numbers_are_left_out() -> None:
    event = event_of(
        make_alert(evidence=(make_evidence(fve=None), make_evidence(fve=float("nan"))))
    )
    assert "nae.fve" not in event.data["unmapped"]
    assert all("fve" not in evidence["data"] for evidence in event.data["evidences"])


def test_how_likely_a_decode_is_unsupported_is_told_with_its_cost_or_not_at_all() -> None:
    def told(**finding: Any) -> dict[str, Any]:
        event = event_of(make_alert(evidence=(make_evidence(**finding),)))
        (evidence,) = event.data["evidences"]
        own = {k: v for k, v in evidence["data"].items() if k.startswith("unsupported")}
        whole = event.data["unmapped"].items()
        assert own == {k[4:]: v for k, v in whole if k.startswith("nae.unsupported")}
        return own

    known = told(unsupported=0.0, unsupported_decodes=6, unsupported_s=2.5)
    assert known == {"unsupported": 0.0, "unsupported_decodes": 6, "unsupported_seconds": 2.5}
    assert told(unsupported=0.3) == {"unsupported": 0.3}
    assert told() == told(unsupported=float("nan")) == {}


def test_support_is_told_as_measured_unknown_or_not_at_all() -> None:
    def told(**finding: Any) -> dict[str, Any]:
        event = event_of(make_alert(evidence=(make_evidence(**finding),)))
        (evidence,) = event.data["evidences"]
        own = {k: v for k, v in evidence["data"].items() if k.startswith("support")}
        whole = event.data["unmapped"].items()
        assert own == {k[4:]: v for k, v in whole if k.startswith("nae.support")}
        return own

    measured = told(support=0.0, support_asked=True, support_s=0.25)
    assert measured == {"support": 0.0, "support_state": "measured", "support_seconds": 0.25}
    assert told(support_asked=True) == {"support_state": "unknown"}
    assert told(support=float("nan"), support_asked=True) == {"support_state": "unknown"}
    assert told() == {}


def test_evidence_that_was_made_for_another_row_says_so() -> None:
    own, other = make_evidence(), replace(make_evidence(), reused=True)
    data = event_of(make_alert(evidence=(own, other))).data
    assert [one["data"].get("reused") for one in data["evidences"]] == [None, True]
