"""Rows of recordings, labelled by what rules read in their decodes, and by what people made of it.

So a screen learns to find without a decode what decodes have found (distillation), and unlearns
what triage called false.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from nae_monitor.concepts.rows import LabelledRows
from nae_monitor.errors import InputDataError
from nae_monitor.recording import RecordedActivation, Recording
from nae_monitor.records import FindingState, Phase

ORDINARY = ""  # the kind of a row that no rule matched
MAX_ROWS = 50_000  # ordinary ones, and as many that rules matched: what memory holds with ease
HELD_SHARE = 0.3  # of requests: directions are chosen on them, not learnt
Labelled = tuple[RecordedActivation, str]  # a row and its kind
Labels = Mapping[str, Collection[str]]  # request id to the names of rules that people found right


def read_recorded(
    recordings: Sequence[Recording],
    *,
    model: str,
    layer: int,
    d_model: int,
    labels: Labels | None = None,
) -> tuple[LabelledRows, LabelledRows]:
    """Judged rows to learn from, and those of other requests to choose on.

    A row that a rule matched is of that rule's kind, once for each rule; one that no rule matched
    is ordinary. Where a rule could not decide, the row is neither. In a request that ``labels``
    names, matches of rules that are not right there are ordinary. Of more than :data:`MAX_ROWS`
    of either sort as many are drawn, always the same.

    Args:
        recordings: what was judged.
        model: whose rows these must be, as recordings name it.
        layer: index into ``hidden_states`` that the rows must be of.
        d_model: their width.
        labels: what people said of alerts; None: only decodes label.

    Raises:
        InputDataError: a recording of another model, layer or width, or nothing to learn from.
    """
    labels = labels or {}
    for recording in recordings:
        stated = recording.layer
        of = (recording.model or model, layer if stated is None else stated)
        if of != (model, layer):
            raise InputDataError(
                f"{recording.path} is of {of[0]}, layer {of[1]}, and not of {model}, layer {layer}"
            )
    usable = _bounded(
        one
        for recording in recordings
        for one in _labelled(recording, labels)
        if _is_usable(one[0], d_model)
    )
    if not usable:
        names = ", ".join(str(recording.path) for recording in recordings)
        raise InputDataError(f"{names}: no judged row of width {d_model} is recorded")
    parts: dict[bool, list[Labelled]] = {False: [], True: []}
    for one in usable:
        parts[_is_held(one[0].activation.request.request_id)].append(one)
    return _rows(parts[False], d_model), _rows(parts[True], d_model)


def _labelled(recording: Recording, labels: Labels) -> Iterable[Labelled]:
    matched: dict[tuple[str, int], set[str]] = {}
    unknown: set[tuple[str, int]] = set()
    for finding in recording.findings():
        place = finding.request_id, finding.position
        if finding.state is FindingState.MATCH:
            matched.setdefault(place, set()).add(finding.rule_name)
        elif finding.state is FindingState.UNDECIDED:
            unknown.add(place)
    for row in recording.activations():
        place = row.activation.request.request_id, row.activation.position
        rules = matched.get(place, set())
        right = labels.get(place[0])
        kinds = rules if right is None else rules & set(right)
        if row.decoding is not None and (kinds or place not in unknown):
            for kind in sorted(kinds) or [ORDINARY]:
                yield row, kind


def _bounded(found: Iterable[Labelled], limit: int = MAX_ROWS) -> list[Labelled]:
    """At most ``limit`` ordinary rows and as many others, each as likely as any (Vitter's R)."""
    kept: dict[bool, list[Labelled]] = {True: [], False: []}
    seen = Counter[bool]()
    chance = random.Random(0)  # noqa: S311 - sampling, not secrets
    for one in found:
        is_ordinary = one[1] == ORDINARY
        rows = kept[is_ordinary]
        seen[is_ordinary] += 1
        if len(rows) < limit:
            rows.append(one)
        elif (place := chance.randrange(seen[is_ordinary])) < limit:
            rows[place] = one
    return [*kept[True], *kept[False]]


def _is_usable(row: RecordedActivation, d_model: int) -> bool:
    vector = row.activation.vector
    norm = float(vector.double().norm())
    return vector.shape == (d_model,) and np.isfinite(norm) and norm > 0


def _is_held(request_id: str) -> bool:
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < HELD_SHARE


def _rows(found: Sequence[Labelled], d_model: int) -> LabelledRows:
    """Rows of one request and kind are a document: its rows without a hit are ordinary ones."""
    kinds = np.array([kind for _, kind in found], dtype=np.str_)
    names = [f"{row.activation.request.request_id}\0{kind}" for row, kind in found]
    numbers: dict[str, int] = {}
    documents = [numbers.setdefault(name, len(numbers)) for name in names]
    vectors = [row.activation.vector.double().numpy() for row, _ in found]
    unit = np.stack(vectors) if vectors else np.zeros((0, d_model))
    return LabelledRows(
        unit / np.linalg.norm(unit, axis=1, keepdims=True),
        np.array(documents, dtype=np.int64),
        kinds,
        kinds != ORDINARY,
        np.array([row.activation.phase is Phase.PROMPT for row, _ in found], dtype=bool),
        np.array([row.activation.position for row, _ in found], dtype=np.int64),
    )
