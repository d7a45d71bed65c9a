"""Labels of alerts as the rule tools take them: expectations, and samples to tune a rule with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nae_monitor.alert.privacy import HASH_PREFIX
from nae_monitor.alert.read_alert import ReadAlert
from nae_monitor.alert.triage import Label, Triaged

_COPIED = ("prompt", "output", "token", "fve", "cosine", "phase", "position")


def expectations(labelled: Iterable[Triaged]) -> dict[str, list[str]]:
    """What ``rules backtest --expect`` holds a corpus against: request id to rules.

    A request whose labelled alerts were all false positives stands there with no rule, so that
    a rule which matches it again is reported as unexpected.
    """
    found: dict[str, set[str]] = {}
    for one in labelled:
        if one.label:
            rules = found.setdefault(one.request_id, set())
            rules |= {one.rule} if one.label == "tp" else set()
    return {request_id: sorted(rules) for request_id, rules in sorted(found.items())}


def labelled_places(labelled: Iterable[Triaged], rule: str, label: Label) -> set[str]:
    """Where alerts of a rule with a label have evidence, each as ``request:position``."""
    return {
        f"{one.request_id}:{evidence.get('position')}"
        for one in labelled
        if one.rule == rule and one.label == label
        for evidence in evidence_of(one.alert)
    }


def samples(labelled: Iterable[Triaged], rule: str, label: Label) -> Iterator[dict[str, Any]]:
    """The evidences of a rule's alerts with a label, as lines of a corpus for ``rules tune``.

    Only alerts that were sent with ``content: full`` hold the text to judge; of the others only
    a recording has it.
    """
    for one in labelled:
        if one.rule != rule or one.label != label:
            continue
        for evidence in evidence_of(one.alert):
            if is_readable(evidence.get("explanation")):
                yield _sample(one, evidence)


def is_readable(text: Any) -> bool:
    """Whether it is a text, neither withheld nor hashed."""
    return isinstance(text, str) and bool(text) and not text.startswith(HASH_PREFIX)


def evidence_of(alert: ReadAlert) -> list[Mapping[str, Any]]:
    """The evidences of an alert, best first, without what is none."""
    evidences = alert.data.get("evidences")
    listed = evidences if isinstance(evidences, list) else []
    found = [item.get("data") for item in listed if isinstance(item, dict)]
    return [data for data in found if isinstance(data, dict)]


def _sample(one: Triaged, evidence: Mapping[str, Any]) -> dict[str, Any]:
    unmapped = one.alert.data.get("unmapped")
    unmapped = unmapped if isinstance(unmapped, dict) else {}
    more = {"model": unmapped.get("gen_ai.request.model"), "nla_id": unmapped.get("nae.nla.id")}
    kept = {name: evidence.get(name) for name in _COPIED} | more
    return {
        "id": f"{one.request_id}:{evidence.get('position')}",
        "request_id": one.request_id,
        "explanation": evidence["explanation"],
        **{name: value for name, value in kept.items() if value is not None},
        "fve": evidence.get("fve"),  # null: unscored, where leaving it out would mean full
        "cosine": evidence.get("cosine"),
    }
