"""The AsyncAPI 3.0.0 document of the alerts topic, from the same schema as the events.

Sources: AsyncAPI 3.0.0; its Kafka bindings 0.5.0; the Kafka binding of CloudEvents 1.0.2.
"""

from __future__ import annotations

from typing import Any

from nae_monitor.alert.event import EVENT_TYPE
from nae_monitor.alert.event_schema import attributes_schema, value_schema
from nae_monitor.alert.ocsf import PACKAGE_VERSION

ASYNCAPI_VERSION = "3.0.0"
DIALECT_MEDIA_TYPE = "application/schema+json;version=draft-07"
_BINDING_VERSION = "0.5.0"


def asyncapi_document(topic: str) -> dict[str, Any]:
    """The document of one topic; where brokers are is not for the world to read.

    The schemas use nothing that draft 07 lacks, which is the dialect AsyncAPI tools read.
    """
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": _info(),
        "defaultContentType": "application/json",
        "channels": {
            "alerts": {
                "address": topic,
                "description": "Alerts, at least once, in order of ce_sequence within a key.",
                "messages": {"alert": {"$ref": "#/components/messages/alert"}},
                "bindings": {"kafka": {"topic": topic, "bindingVersion": _BINDING_VERSION}},
            }
        },
        "operations": {
            "sendAlert": {
                "action": "send",
                "summary": "Tell of findings of one rule in one request.",
                "channel": {"$ref": "#/channels/alerts"},
                "messages": [{"$ref": "#/channels/alerts/messages/alert"}],
            }
        },
        "components": {"messages": {"alert": _message()}},
    }


def _info() -> dict[str, Any]:
    return {
        "title": "nae_monitor alerts",
        "version": PACKAGE_VERSION,
        "description": (
            "CloudEvents 1.0 in binary mode around an OCSF Detection Finding. Delivery is at least"
            " once: drop repeats by ce_source and ce_id, order by ce_sequence within a key."
        ),
        "license": {"name": "Apache-2.0"},
    }


def _message() -> dict[str, Any]:
    value = {k: v for k, v in value_schema().items() if not k.startswith("$")}
    key = {"type": "string", "description": "The conversation's id, or its keyed hash."}
    return {
        "name": EVENT_TYPE,
        "title": "Alert",
        "contentType": "application/json",
        "headers": _headers(),
        "payload": {"schemaFormat": DIALECT_MEDIA_TYPE, "schema": value},
        "bindings": {"kafka": {"key": key, "bindingVersion": _BINDING_VERSION}},
    }


def _headers() -> dict[str, Any]:
    """Attributes as Kafka headers, whose values are text."""
    plain = attributes_schema()
    numbers = [str(number) for number in plain["properties"]["severitynumber"]["enum"]]
    plain["properties"]["severitynumber"] = {"enum": numbers}
    properties = {f"ce_{name}": schema for name, schema in plain["properties"].items()}
    required = [f"ce_{name}" for name in plain["required"]]
    return {
        "type": "object",
        "required": ["content-type", *required],
        "properties": {"content-type": {"const": "application/json"}, **properties},
    }
