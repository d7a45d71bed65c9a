"""A sample written as a corpus line is read as the same to judge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nae_monitor.detect.tools.corpus import Sample, line_of, read_corpus, sample_of

text = st.text(max_size=10)
figure = st.none() | st.floats(-1, 1)
values = st.fixed_dictionaries(
    {"id": st.text(min_size=1, max_size=5), "explanation": text},
    optional={
        "request_id": st.text(min_size=1, max_size=5),
        "prompt": st.none() | text,
        "output": st.none() | text,
        "token": text,
        "model": text,
        "nla_id": text,
        "fve": figure,
        "cosine": figure,
        "phase": st.sampled_from(["prompt", "completion"]),
        "position": st.integers(0, 2**31 - 1),
        "layer": st.integers(0, 99),
        "time_unix_s": st.integers(0, 2**32),
        "request": st.dictionaries(st.sampled_from(["tenant", "session_id", "k"]), text),
    },
)


def judged_by(sample: Sample) -> tuple[Any, ...]:
    a = sample.activation
    placed = (a.position, a.layer, a.phase, a.token, a.captured_unix_ns)
    return (sample.id, a.request, *placed, sample.decoding, sample.transcript)


@given(values)
@settings(deadline=None)
def test_a_sample_survives_its_line(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    sample = sample_of(value, "name")
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_text(json.dumps(line_of(sample)) + "\n")
    (again,) = read_corpus([path])
    assert judged_by(again) == judged_by(sample)
