"""The JSON Schema of rule files, for editors.

It says what keys there are and of what type; what only the reader can know (that a condition's
names exist, that RE2 takes a pattern) is left to lint. Nothing the reader takes is refused here.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from nae_monitor.detect.figures import Measure
from nae_monitor.detect.matchers import FuzzyScorer
from nae_monitor.detect.schema import SCHEMA_VERSION, Enforcement, Metric, Status
from nae_monitor.detect.text import Quotes
from nae_monitor.detect.views import FIELDS, NUMBER_FIELDS, REQUEST_PREFIX, SCORE_PREFIX
from nae_monitor.records import Phase, Severity

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}
DAY: Schema = {"type": "string", "format": "date"}
SEVERITY: Schema = {"enum": [severity.value for severity in Severity]}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    shape: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return shape | ({"required": list(required)} if required else {})


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _integer(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _named(kind: str) -> Schema:
    """A reference to a list or macro document."""
    return _object((kind,), **{kind: TEXT})


def _listing() -> Schema:
    return {"type": "array", "items": {"anyOf": [TEXT, _named("list")]}}


def rule_schema() -> Schema:
    """The schema of one document of a rule file (draft 2020-12), every kind of document."""
    kinds = {
        "override": _override(),
        "aggregation": _aggregation(),
        "detection": _rule(),
        "filter": _filter(),
        "list": _object(("schema_version", "list", "items"), **_about(), list=TEXT, items=TEXTS),
        "macro": _object(
            ("schema_version", "macro", "selection"),
            **_about(),
            macro=TEXT,
            selection={"type": "object"},
        ),
    }
    choice: Schema = _rule()
    for key, shape in reversed(kinds.items()):
        choice = {"if": {"required": [key]}, "then": shape, "else": choice}
    return {
        "$schema": DRAFT,
        "title": "nae_monitor rule",
        "type": "object",
        **choice,
    }


def _about() -> dict[str, Schema]:
    return {"schema_version": {"const": SCHEMA_VERSION}, "title": TEXT, "description": TEXT}


def _header() -> dict[str, Schema]:
    related = _object(("id", "type"), id=TEXT, type=TEXT)
    return {
        **_about(),
        "id": {"type": "string", "format": "uuid"},
        "name": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,63}$"},
        "version": {"type": ["string", "integer"]},
        "related": {"type": "array", "items": related},
        "status": {"enum": list(get_args(Status))},
        "severity": SEVERITY,
        "risk_score": _integer(0, 100),
        "author": TEXT,
        "date": DAY,
        "references": TEXTS,
        "tags": TEXTS,
        "falsepositives": TEXTS,
        "guide": TEXT,
        "enabled": FLAG,
        "enforcement": {"enum": list(get_args(Enforcement))},
        "required_engine_version": TEXT,
        "required_nla": _object(base_model=TEXT, layer=_integer(0, 10_000)),
        "suppress": _suppress(),
        "actions": _actions(),
    }


REQUIRED = ("schema_version", "title", "id", "name", "severity")


def _rule() -> Schema:
    when = {"anyOf": [TEXT, {"type": "object"}]}
    exception = _object(("name", "when", "reason"), name=TEXT, when=when, reason=TEXT, expires=DAY)
    scope = _object(
        phase={"type": "array", "items": {"enum": [p.value for p in Phase]}},
        min_token_index=_integer(0, 10**9),
        max_norm=_number(0, 1e30),
        models=TEXTS,
        layers={"type": "array", "items": _integer(0, 10_000)},
    )
    fidelity = _object(
        ("min",),
        metric={"enum": list(get_args(Metric))},
        min=_number(-1e6, 1e6),
        below={"enum": ["drop", "downgrade", "tag"]},
        unscored={"enum": ["drop", "downgrade", "pass"]},
        min_support=_number(0, 2),
        max_unsupported=_number(0, 1),
    )
    detection = {
        "type": "object",
        "required": ["condition"],
        "properties": {"condition": TEXT},
        "additionalProperties": _selection(),
    }
    return _object(
        (*REQUIRED, "detection"),
        **_header(),
        scope=scope,
        detection=detection,
        exceptions={"type": "array", "items": exception},
        fidelity=fidelity,
        tests={"type": "array", "items": _test()},
    )


def _selection() -> Schema:
    semantic = _object(
        ("exemplars", "threshold"),
        exemplars=_listing(),
        negatives=_listing(),
        threshold=_number(-1, 1),
        margin=_number(0, 2),
        granularity={"enum": ["sentence", "full"]},
        field=TEXT,
        encoder=TEXT,
    )
    fuzzy = _object(
        ("any",),
        any=_listing(),
        score=_number(1, 100),
        scorer={"enum": list(get_args(FuzzyScorer))},
        exact=FLAG,
    )
    bound = _number(-1e30, 1e30)
    value = _object(gte=bound, lte=bound)
    value["properties"]["in"] = {"type": "array", "items": bound}
    keyed = "|".join(re.escape(prefix) for prefix in (REQUEST_PREFIX, SCORE_PREFIX))
    field: Schema = {"anyOf": [{"enum": [*FIELDS, *NUMBER_FIELDS]}, {"pattern": f"^({keyed})."}]}
    return _object(
        field={"type": "string", **field},
        quotes={"enum": list(get_args(Quotes))},
        case=FLAG,
        word=FLAG,
        keywords=_object(any=_listing(), all=_listing()),
        regex=_listing(),
        fuzzy=fuzzy,
        semantic=semantic,
        activation=_object(
            ("direction", "layer", "gte"),
            direction=TEXT,
            layer=_integer(0, 10_000),
            measure={"enum": list(get_args(Measure))},
            gte=bound,
        ),
        value=value,
        macro=TEXT,
    )


def _test() -> Schema:
    expected = _object(match=FLAG, severity=SEVERITY, suppressed=_integer(0, 10**6), routes=TEXTS)
    return _object(
        ("expect",),
        name=TEXT,
        explanation=TEXT,
        prompt=TEXT,
        output=TEXT,
        token=TEXT,
        request={"type": "object", "additionalProperties": TEXT},
        fve={"type": ["number", "null"], "maximum": 1},
        percentile={"type": ["number", "null"], "minimum": 0, "maximum": 100},
        support={"type": ["number", "null"], "minimum": -2, "maximum": 2},
        unsupported={"type": ["number", "null"], "minimum": 0, "maximum": 1},
        scores={"type": "object", "additionalProperties": {"type": "number"}},
        hits={"type": "array"},
        samples=_integer(0, 10**9),
        rate=_number(0, 1),
        expect={"anyOf": [{"enum": ["match", "no_match", "undecided"]}, expected]},
    )


def _aggregation() -> Schema:
    body = _object(
        ("rules", "window"),
        type={"enum": ["event_count", "event_rate", "value_count", "temporal", "temporal_ordered"]},
        rules=TEXTS,
        group_by=TEXTS,
        window=_object(tokens={"type": "integer"}, samples={"type": "integer"}, time=TEXT),
        condition={"type": "object"},
        min_samples=_integer(1, 10**6),
        absent=TEXTS,
    )
    tests: Schema = {"type": "array", "items": _test()}
    return _object((*REQUIRED, "aggregation"), **_header(), aggregation=body, tests=tests)


def _filter() -> Schema:
    body = _object(
        ("rules", "when"),
        rules={"anyOf": [TEXTS, {"const": "any"}]},
        when={"anyOf": [TEXT, {"type": "object"}]},
        reason=TEXT,
        expires=DAY,
    )
    about = {**_about(), "id": TEXT, "name": TEXT, "author": TEXT, "date": DAY}
    return _object(("schema_version", "name", "filter"), **about, filter=body)


def _override() -> Schema:
    how = {
        "type": "object",
        "required": ["rule"],
        "properties": {"rule": TEXT},
        "additionalProperties": {"enum": ["replace", "append"]},
    }
    return {"type": "object", "required": ["schema_version"], "properties": {"override": how}}


def _suppress() -> Schema:
    overflow: Schema = {"enum": ["summarize", "count"]}
    shape = _object(group_by=TEXTS, max_alerts=TEXT, overflow=overflow)
    shape["properties"]["for"] = TEXT
    return shape


def _actions() -> Schema:
    one = _object(
        alert=_object(routes=TEXTS),
        raise_sampling=_object(rate=_number(0, 1), scope=TEXT, tokens=_integer(1, 10**6)),
        stop_generation=_object(
            mode={"enum": list(get_args(Enforcement))},
            min_fidelity=_number(-1e6, 1),
            min_hits=_integer(1, 10**6),
            within_tokens=_integer(1, 10**6),
        ),
        tag=TEXTS,
        capture=FLAG,
    )
    return {"type": "array", "items": {"anyOf": [{"enum": ["alert", "capture"]}, one]}}
