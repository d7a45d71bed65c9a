"""What a webhook posts for one alert: our own signed event, or a message for Slack.

Signature: Standard Webhooks 1.0.0. The headers are ``webhook-id`` (the event's id: drop what
comes twice), ``webhook-timestamp`` (Unix seconds of this attempt: refuse old ones) and
``webhook-signature``: ``v1,`` and the base64 of HMAC-SHA256 over ``ID.TIMESTAMP.BODY``. A secret
that begins with ``whsec_`` is base64 behind that; any other is taken as its UTF-8 bytes.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Any

import orjson

from nae_monitor.alert.event import conversation_id, to_json
from nae_monitor.alert.ocsf import finite
from nae_monitor.alert.outbox_rows import Row
from nae_monitor.alert.privacy import HASH_PREFIX, RedactedAlert
from nae_monitor.alert.restored_alert import attributes_of
from nae_monitor.alert.wording import matched_words

SECRET_PREFIX = "whsec_"  # noqa: S105 - says what follows
SLACK_TITLE_CHARS = 150  # of Slack: a header block; a section takes 3,000
SLACK_TEXT_CHARS = 2900


def secret_bytes(secret: str) -> bytes:
    """The key that a secret stands for.

    Raises:
        ValueError: it begins with ``whsec_`` and goes on with something other than base64.
    """
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"what follows {SECRET_PREFIX} is not base64") from error


def signature(key: bytes, event_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp_s, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def event_body(row: Row) -> bytes:
    """The CloudEvent in structured JSON, as the jsonl sink writes it.

    Raises:
        ValueError: the row's value is no JSON.
    """
    attributes: dict[str, Any] = {**attributes_of(row)}
    attributes["severitynumber"] = int(attributes["severitynumber"])
    kind = {"datacontenttype": "application/json"}
    return to_json({**attributes, **kind, "data": orjson.loads(row.value)})


def slack_body(alert: RedactedAlert, event_id: str) -> bytes:
    """A message in blocks of plain text, in which nothing of an alert can act as markup."""
    title = f"{alert.severity.upper()} {alert.title}"
    texts = [_facts(alert), *_content(alert)]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _plain(title, SLACK_TITLE_CHARS)},
        *({"type": "section", "text": _plain(text, SLACK_TEXT_CHARS)} for text in texts),
        {"type": "context", "elements": [_plain(f"alert {event_id}", 300)]},
    ]
    return to_json({"text": _escaped(title[:SLACK_TITLE_CHARS]), "blocks": blocks})


def _facts(alert: RedactedAlert) -> str:
    first, last = alert.first_position, alert.last_position
    fve = finite(alert.evidence[0].fve) if alert.evidence else None
    lines = [
        f"rule {alert.rule_name} {alert.rule_version}",
        f"request {alert.request.request_id}, conversation {conversation_id(alert.request)}",
        f"model {alert.request.model}",
        f"token {first}" if first == last else f"tokens {first} to {last}",
        f"{alert.count} findings, {alert.held_back} held back",
        "FVE unknown" if fve is None else f"FVE {fve:.2f}",
    ]
    lines += [f"tenant {alert.request.tenant}"] if alert.request.tenant else []
    lines += [alert.stop.value.replace("_", " ")] if alert.stop is not None else []
    return "\n".join(lines)


def _content(alert: RedactedAlert) -> list[str]:
    """What the best evidence says; nothing where it is hashed, which nobody can read."""
    if not alert.evidence:
        return []
    best = alert.evidence[0]
    words = dict.fromkeys(matched_words(span.text) for span in best.finding.spans if span.text)
    shown = (("matched", " · ".join(words)), ("reads", best.explanation))
    return [f"{name}: {text}" for name, text in shown if text and HASH_PREFIX not in text]


def _plain(text: str, most_chars: int) -> dict[str, Any]:
    cut = text if len(text) <= most_chars else text[: most_chars - 1] + "…"
    return {"type": "plain_text", "text": cut or "-", "emoji": False}


def _escaped(text: str) -> str:
    """As Slack wants text that is no markup; so nobody can be called by an alert's words."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
