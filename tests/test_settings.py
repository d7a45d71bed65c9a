"""The configuration file: what DESIGN.md shows is read, and no mistake in it passes silently."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nae_monitor.errors import ConfigurationError, Problem
from nae_monitor.settings import Settings
from nae_monitor.sink_settings import (
    ConsoleSettings,
    JsonlSettings,
    KafkaSettings,
    OtelSettings,
    SinkSettings,
)

WHOLE = """
target: {model: smollm2-135m-instruct}
nla:    {av: embedded/smollm2-135m-l20-av, ar: embedded/smollm2-135m-l20-ar, engine: torch}
capture: {phases: [prompt, completion], min_position: 10, placement: inline}
screen:  {directions: rules, random_share: 0.1, budget: {decodes_per_s: 4, per_request: 16}}
detect:  {rules: [rules/], encoder: embedded/all-minilm-l6-v2}
alert:   {sinks: [console, {jsonl: alerts.jsonl}, {otel: {}}, {kafka: {bootstrap: "127.0.0.1:9092", topic: nae.alerts}}]}
record:  {dir: recordings/, keep: candidates}
privacy: {content: hash, key_env: NAE_MONITOR_HMAC_KEY}
"""  # noqa: E501


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_yaml("m.yaml", text)
    assert all(problem.where.line for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


def test_the_configuration_of_the_design_is_read() -> None:
    settings = Settings.from_yaml("m.yaml", WHOLE)
    assert settings.detect.rules == ("rules/",)
    assert settings.screen.budget.decodes_per_s == 4.0
    assert settings.alert.sinks == (
        SinkSettings("console", ConsoleSettings()),
        SinkSettings("jsonl", JsonlSettings("alerts.jsonl")),
        SinkSettings("otel", OtelSettings()),
        SinkSettings("kafka", KafkaSettings("127.0.0.1:9092", "nae.alerts")),
    )


def test_an_empty_mapping_is_the_embedded_default() -> None:
    assert Settings.from_yaml("m.yaml", "{}") == Settings()


def test_the_file_is_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("nla: {batch_size: 3}")
    assert Settings.from_yaml(path).nla.batch_size == 3


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().nla = None  # type: ignore[misc, assignment]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nla: {egine: torch}", "unknown key 'egine' in nla (did you mean 'engine'?)"),
        ("nla: {engine: vllm}", "use torch, vllm:URL or sglang:URL"),
        ("nla: {engine: 'tgi:http://x'}", "use torch, vllm:URL or sglang:URL"),
        ("nla: {batch_size: 0}", "batch_size and max_new_tokens are at least 1"),
        ("nla: {timeout_s: 0}", "timeout_s is above 0, ar_batch_size at least 1"),
        ("nla: {ar_batch_size: 0}", "timeout_s is above 0, ar_batch_size at least 1"),
        ("nla: {cpu_weights: int4}", "one of: float32, int8"),
        ("nla: {cpu_weights: int8, device: cuda}", "for engine torch on device cpu or auto"),
        ("nla: {cpu_weights: int8, engine: 'vllm:http://x'}", "for engine torch on device cpu"),
        ("capture: {phases: []}", "phases must not be empty"),
        ("capture: {phases: [reply]}", "one of: prompt, completion"),
        ("screen: {random_share: 1.5}", "random_share is 0 to 1"),
        ("screen: {budget: {decodes_per_s: .nan}}", "expected a finite number"),
        ("screen: {budget: {decodes_per_s: 0}}", "decodes_per_s must be above 0"),
        ("detect: {rules: []}", "rules is empty"),
        ("detect: {rules: builtin}", "rules must be a list"),
        ("record: {dir: ''}", "dir is empty"),
        ("privacy: {content: plain}", "one of: hash, full, none"),
        ("alert: {sinks: console}", "sinks must be a list"),
        ("alert: {sinks: [konsole]}", "unknown sink 'konsole' (did you mean 'console'?)"),
        ("alert: {sinks: [{jsonl: a, otel: {}}]}", "unknown sink"),
        ("alert: {sinks: [{console: {wide: true}}]}", "unknown key 'wide'"),
        ("alert: {sinks: [jsonl]}", "lacks the key 'path'"),
        ("alert: {sinks: [{jsonl: ''}]}", "path is empty"),
        ("alert: {sinks: [{otel: false}]}", "options must be a mapping"),
        ("alert: {sinks: [{kafka: {topic: a}}]}", "lacks the key 'bootstrap'"),
        ("alert: {sinks: [{kafka: {bootstrap: a, outbox_bytes: 0}}]}", "at least 4096"),
        ("alert: {sinks: [3]}", "unknown sink 3"),
    ],
)
def test_a_mistake_is_one_line_with_its_place_and_mend(text: str, said: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith("m.yaml:1:")
    assert said in problem


def test_mistakes_of_every_section_come_together() -> None:
    text = "nla: {x: 1}\nalert:\n  sinks: [nope, {kafka: {}}]\nscren: {}\nrecord: {keep: all}"
    assert len(problems_of(text)) == 5


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.sampled_from(
    [f.name for f in dataclasses.fields(Settings)]
    + ["sinks", "jsonl", "kafka", "otel", "console", "bootstrap", "path", "engine", "budget"]
)
TREES = st.recursive(
    SCALARS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(NAMES, TREES, max_size=4))
def test_any_tree_is_read_or_refused_by_a_configuration_error(tree: object) -> None:
    problems: tuple[Problem, ...] | None = None
    try:
        Settings.from_yaml("m.yaml", yaml.safe_dump(tree))
    except ConfigurationError as error:
        problems = error.problems
    assert problems != ()
