"""Reads the matchers over numbers: ``value`` and ``activation``."""

from __future__ import annotations

import math
from typing import cast, get_args

from nae_monitor.detect.directions import DirectionError, read_direction
from nae_monitor.detect.figures import ACTIVATION_FIELD, ActivationMatcher, Measure, ValueMatcher
from nae_monitor.detect.reading import Reader
from nae_monitor.detect.views import FIELDS, NUMBER_FIELDS, REQUEST_PREFIX, SCORE_PREFIX
from nae_monitor.strict_yaml import nearest

MAX_FIGURE = 1e30
MAX_LAYER = 10_000


def read_value(reader: Reader) -> tuple[str, ValueMatcher] | None:
    """Field and matcher of a ``value`` selection; faults are reported."""
    field = _number_field(reader)
    inner = reader.child("value")
    gte = inner.number("gte", -MAX_FIGURE, MAX_FIGURE)
    lte = inner.number("lte", -MAX_FIGURE, MAX_FIGURE)
    among = inner.sequence("in")
    for index, item in enumerate(among):
        number = isinstance(item, int | float) and not isinstance(item, bool)
        if not number or not abs(item) <= MAX_FIGURE:
            inner.item_fault("in", index, "must be a number", "write `in: [1, 2]`")
            return None
    inner.finish()
    if not {"gte", "lte", "in"} & set(inner.value):
        inner.fault(None, "value compares with nothing", "write `gte: 0.5`, `lte: …` or `in: […]`")
    elif inner.has("in") and not among:
        inner.fault("in", "in lists no number", "write `in: [1, 2]`")
    if gte is not None and lte is not None and gte > lte:
        inner.fault(None, f"no number is at least {gte:g} and at most {lte:g}", "exchange them")
    return field, ValueMatcher(gte, lte, tuple(float(item) for item in among))


def _number_field(reader: Reader) -> str:
    if not reader.has("field"):
        reader.fault(None, "value lacks its field", "add `field: fve` or another numeric field")
        return ""
    field = reader.text("field", max_chars=100)
    prefixed = any(
        field.startswith(p) and field.removeprefix(p) for p in (REQUEST_PREFIX, SCORE_PREFIX)
    )
    if field in FIELDS:
        hint = "use keywords, regex, fuzzy or semantic; numeric: " + ", ".join(NUMBER_FIELDS)
        reader.fault("field", f"{field} is text, not a number", hint)
    elif field and field not in NUMBER_FIELDS and not prefixed:
        names = (*NUMBER_FIELDS, REQUEST_PREFIX + "KEY", SCORE_PREFIX + "NAME")
        reader.fault("field", f"unknown numeric field {field!r}", nearest(field, names))
    return field


def read_activation(reader: Reader) -> tuple[str, ActivationMatcher] | None:
    """Field and matcher of an ``activation`` selection; faults are reported."""
    inner = reader.child("activation")
    source = inner.text("direction", max_chars=400)
    layer = inner.integer("layer", 0, MAX_LAYER)
    if "layer" not in inner.value:
        mend = "add `layer: 20`, the index into hidden_states that it was found at"
        inner.fault(None, "activation lacks its layer", mend)
    measure = cast(Measure, inner.choice("measure", get_args(Measure), "cosine"))
    limit = 1.0 if measure == "cosine" else MAX_FIGURE
    gte = inner.number("gte", -limit, limit, math.inf)
    if "gte" not in inner.value:
        inner.fault(None, "activation lacks its bound", "add `gte: 0.2`")
    inner.finish()
    if not source or layer is None or gte is None:
        return None
    try:
        direction = read_direction(source, reader.document.file)
    except DirectionError as error:
        inner.fault("direction", f"the direction: {error}", error.mend, "NM304")
        return None
    return ACTIVATION_FIELD, ActivationMatcher(direction, layer, measure, gte)
