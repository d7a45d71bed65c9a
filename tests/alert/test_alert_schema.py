"""The published schemas say what the events carry; validators of their standards agree."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from alert_parts import make_alert, make_evidence, make_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.alert.asyncapi import asyncapi_document
from nae_monitor.alert.event import AlertEvent, to_event, to_json
from nae_monitor.alert.event_schema import event_schema, value_schema
from nae_monitor.records import Request, Severity, StopOutcome

# Schema of AsyncAPI 3.0.0 as npm's @asyncapi/specs 6.11.1 ships it (Apache-2.0), compressed.
ASYNCAPI_SCHEMA = Path(__file__).with_name("data") / "asyncapi-3.0.0.schema.json.gz"

texts = st.text(st.characters(exclude_categories=[]), max_size=20)
events = st.builds(
    lambda request_id, session, tenant, model, severity, stop, routes, fve, support, content: (
        event_of(request_id, session, tenant, model, severity, stop, routes, fve, support, content)
    ),
    texts,
    st.none() | texts,
    st.none() | texts,
    texts,
    st.sampled_from(Severity),
    st.none() | st.sampled_from(StopOutcome),
    st.lists(st.sampled_from(["oncall", "siem"]), unique=True).map(tuple),
    st.none() | st.floats(),
    st.none() | st.floats(),
    st.sampled_from(["hash", "full", "none"]),
)


def event_of(
    request_id: str,
    session: str | None,
    tenant: str | None,
    model: str,
    severity: Severity,
    stop: StopOutcome | None,
    routes: tuple[str, ...],
    fve: float | None,
    support: float | None,
    content: str,
) -> AlertEvent:
    request = Request(request_id, request_id, model, session_id=session, tenant=tenant)
    evidence = make_evidence(
        fve=fve, support=support, support_asked=True, support_s=0.1, unsupported=fve
    )
    alert = replace(make_alert(severity=severity), request=request, stop=stop, routes=routes)
    policy = make_policy(content)
    return to_event(policy.redact(replace(alert, evidence=(evidence,))), policy)


def closed(schema: Any) -> Any:
    """The schema with nothing allowed that it does not name."""
    if isinstance(schema, dict):
        more = {"additionalProperties": False} if "properties" in schema else {}
        return {key: closed(value) for key, value in schema.items()} | more
    return [closed(item) for item in schema] if isinstance(schema, list) else schema


@cache
def validator(kind: str) -> Any:
    schema = {"value": value_schema, "event": event_schema}[kind]()
    formats = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(closed(schema), format_checker=formats)


@given(events)
@settings(deadline=None)  # the schema is compiled in the first example
def test_every_event_fits_the_published_schema_which_names_all_of_it(event: AlertEvent) -> None:
    validator("value").validate(json.loads(event.value()))
    validator("event").validate(json.loads(to_json(event.structured())))


@given(events)
@settings(deadline=None, max_examples=30)
def test_headers_and_value_fit_what_the_asyncapi_document_says(event: AlertEvent) -> None:
    message = asyncapi_document("t")["components"]["messages"]["alert"]
    headers = {name: value.decode() for name, value in event.headers()}
    jsonschema.Draft7Validator(closed(message["headers"])).validate(headers)
    jsonschema.Draft7Validator(message["payload"]["schema"]).validate(json.loads(event.value()))


def test_the_schemas_are_schemas() -> None:
    jsonschema.Draft202012Validator.check_schema(value_schema())
    jsonschema.Draft202012Validator.check_schema(event_schema())
    message = asyncapi_document("t")["components"]["messages"]["alert"]
    jsonschema.Draft7Validator.check_schema(message["payload"]["schema"])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("class_uid",), 2005),
        (("metadata", "version"), "2.0.0"),
        (("finding_info", "uid"), "not a uuid"),
        (("unmapped", "nae.content"), "plain"),
        (("time",), "yesterday"),
    ],
)
def test_a_value_of_another_contract_does_not_fit(place: tuple[str, ...], value: Any) -> None:
    policy = make_policy()
    data = json.loads(to_event(policy.redact(make_alert()), policy).value())
    inner = data
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    assert not validator("value").is_valid(data)


def test_the_asyncapi_document_is_one() -> None:
    schema = json.loads(gzip.decompress(ASYNCAPI_SCHEMA.read_bytes()))
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(asyncapi_document("nae.alerts"))
    broken = asyncapi_document("nae.alerts")
    del broken["operations"]["sendAlert"]["action"]
    assert not validator.is_valid(broken)
