"""An event's value made anew from itself, where the alert it came from is long gone."""

from __future__ import annotations

import json

from nae_monitor.alert.event import to_json
from nae_monitor.alert.ocsf import known
from nae_monitor.alert.privacy import ContentPolicy

REDUCED_TITLE_CHARS = 256
CONTENT_FIELDS = ("token", "explanation", "prompt", "output")  # of an evidence's data


def narrowed(value: bytes, policy: ContentPolicy) -> bytes:
    """An event's value that was made under a wider privacy setting, brought to this one.

    A value that cannot be read loses everything: what it says cannot be known to be harmless.
    """
    try:
        finding = json.loads(value)
        for evidence in finding["evidences"]:
            data = evidence["data"]
            for holder, name in [
                *((data, name) for name in CONTENT_FIELDS),
                *((match, "text") for match in data["matches"]),
            ]:
                if name in holder:
                    holder[name] = policy.text(holder[name])
            evidence["data"] = known(data) | {"matches": [known(m) for m in data["matches"]]}
        finding["unmapped"]["nae.content"] = policy.mode
    except (ValueError, KeyError, TypeError, AttributeError):
        return b"{}"
    return to_json(finding)


def reduced(value: bytes) -> bytes:
    """A finding without its evidences, its title cut: what still fits where the whole did not."""
    try:
        finding = json.loads(value)
        finding["evidences"] = []
        title = finding["finding_info"]["title"]
        finding["finding_info"]["title"] = title[:REDUCED_TITLE_CHARS]
    except (ValueError, KeyError, TypeError):
        return b"{}"
    return to_json(finding)
