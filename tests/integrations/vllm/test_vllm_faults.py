"""What goes wrong stays inside: a worker's double runs on, and everything is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm_fakes import D_MODEL, EOS, Collector, FirstRunner, Scheduled, Step, new_request

from nae_monitor.errors import ConfigurationError, UnsupportedError
from nae_monitor.health import Health
from nae_monitor.integrations.engines import hosts
from nae_monitor.integrations.engines.buffer import blocks_of
from nae_monitor.integrations.engines.identity import bounded
from nae_monitor.integrations.vllm import worker
from nae_monitor.integrations.vllm.tap import MODES, Mode, Tap
from nae_monitor.integrations.vllm.unsupported import refuse_unsupported
from nae_monitor.settings import ActionSettings, Settings


class Block(torch.nn.Module):
    """As vLLM's: hidden states and a residual that are yet to be added."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual = hidden if residual is None else hidden + residual
        return residual * self.scale, residual


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Block() for _ in range(4))
        self.embed = torch.nn.Embedding(50, D_MODEL)
        self.aux: tuple[int, ...] = ()

    def set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        self.aux = layers

    def forward(self, input_ids: torch.Tensor) -> Any:
        hidden, residual, aux = self.embed(input_ids), None, []
        for index, layer in enumerate(self.layers):
            if index in self.aux:
                aux.append(hidden + residual)
            hidden, residual = layer(hidden, residual)
        return (hidden + residual, aux) if aux else hidden + residual


def states(model: Model, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """The residual stream behind ``layer`` blocks, worked out by itself."""
    stream = model.embed(ids)
    for _ in range(layer):
        stream = stream * 3
    return stream.detach()


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_each_way_to_tap_writes_the_residual_stream_behind_the_block(mode: Mode) -> None:
    model, rows, ids = Model(), torch.zeros(8, D_MODEL), torch.tensor([3, 1, 4])
    plain = model(ids)
    tap = Tap(model, blocks_of(model, 4)[1], 2, rows)
    tap.install(mode)
    assert torch.equal(model(ids), plain)
    torch.testing.assert_close(rows[:3], states(model, ids, 2))
    tap.remove()
    rows.zero_()
    assert torch.equal(model(ids), plain)
    assert not rows.any()


def test_a_block_that_somebody_else_wrapped_is_left_alone() -> None:
    model = Model()
    model.layers[1].forward = model.layers[1].forward  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match="replaced already"):
        Tap(model, model.layers[1], 2, torch.zeros(8, D_MODEL)).install("op")


@torch.no_grad()
def test_the_operation_stays_in_a_graph_without_breaks() -> None:
    model, rows, ids = Model(), torch.zeros(8, D_MODEL), torch.tensor([3, 1, 4])
    Tap(model, model.layers[1], 2, rows).install("op")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(ids)
    torch.testing.assert_close(rows[:3], states(model, ids, 2))


@torch.no_grad()
def test_more_tokens_than_rows_are_cut_and_another_width_is_not_written() -> None:
    rows = torch.zeros(2, D_MODEL)
    torch.ops.nae_monitor.tap(torch.ones(5, D_MODEL), torch.ones(5, D_MODEL), rows)
    assert rows.eq(2).all()
    torch.ops.nae_monitor.tap(torch.zeros(2, 3), None, rows)
    assert rows.eq(2).all()


def test_a_model_without_such_a_list_of_blocks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no list of 7 decoder blocks"):
        blocks_of(Model(), 7)


def config(**parallel: Any) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        speculative_config=None,
        model_config=SimpleNamespace(is_encoder_decoder=False),
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pipeline_parallel_size", 2, "--pipeline-parallel-size"),
        ("prefill_context_parallel_size", 2, "--prefill-context-parallel-size"),
        ("enable_dbo", True, "--enable-dbo"),
    ],
)
def test_settings_under_which_rows_get_mixed_up_are_refused(
    name: str, value: object, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        refuse_unsupported(config(**{name: value}), Settings())


def test_every_unsupported_setting_is_named_at_once() -> None:
    bad = config(pipeline_parallel_size=2)
    bad.speculative_config = object()
    with pytest.raises(ConfigurationError) as caught:
        refuse_unsupported(bad, Settings(actions=ActionSettings(hold_s=1.0)))
    assert len(caught.value.problems) == 3


def test_tensor_parallelism_is_not_refused() -> None:
    refuse_unsupported(config(tensor_parallel_size=4), Settings())


class Worker:
    """A vLLM worker's double around the V1 runner's."""

    def __init__(self, *, fails: bool = False) -> None:
        self.rows = torch.zeros(16, D_MODEL)
        self.model_runner = FirstRunner(self.rows)
        self.fails = fails
        self.was_shut = False

    def load_model(self) -> str:
        return "loaded"

    def compile_or_warm_up_model(self) -> str:
        return "warm"

    def execute_model(self, output: Any) -> str:
        self.model_runner.run(output.step)
        return "ran"

    def sample_tokens(self, sampled: Any = None) -> Any:
        return sampled

    def shutdown(self) -> None:
        self.was_shut = True


def run(target: Worker, step: Step) -> Any:
    output = step.output
    output.step = step
    return target.execute_model(output)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Worker, Collector]:
    """A worker under watch, with its tests of the model left out."""
    path = tmp_path / "monitor.yaml"
    path.write_text("capture: {min_position: 0, gather_steps: 2, gather_s: 10}\n")
    target, collector = Worker(), Collector(Health())
    tap = SimpleNamespace(rows=target.rows, layer=2)
    monkeypatch.setattr(worker.WatchedWorker, "_reads", lambda self: True)
    monkeypatch.setattr(worker.WatchedWorker, "_tapped", lambda self, *_: (tap, "op"))
    monkeypatch.setattr(worker, "refuse_unsupported", lambda config, settings: None)
    monkeypatch.setattr(worker, "self_test", lambda *_, **__: 0.0)
    monkeypatch.setattr(hosts, "open_host", lambda settings, tokenizer: collector)
    target.vllm_config = None  # type: ignore[attr-defined]
    worker.watch_worker(target, str(path))
    assert (target.load_model(), target.compile_or_warm_up_model()) == ("loaded", "warm")
    return target, collector


def test_a_listener_that_fails_is_counted_and_the_engine_runs_on(
    started: tuple[Worker, Collector],
) -> None:
    target, collector = started
    collector.faults.add("rows")
    assert run(target, Step([Scheduled("a", 0, [1, 2])], [new_request("a", [1, 2])])) == "ran"
    for position in range(2, 20):
        assert run(target, Step([Scheduled("a", position, [3])])) == "ran"
    counters = collector.health.counters()
    assert counters[f"failed.{worker.ROWS}.RuntimeError"] == 5
    assert collector.health.is_open(worker.ROWS)


def test_rows_the_monitor_could_not_tell_are_counted_and_a_request_still_ends(
    started: tuple[Worker, Collector],
) -> None:
    target, collector = started
    collector.faults.add("rows")
    run(target, Step([Scheduled("a", 0, [1, 2])], [new_request("a", [1, 2])]))
    for position in range(2, 20):
        run(target, Step([Scheduled("a", position, [3])]))
    run(target, Step(finished={"a"}))
    coverage = collector.health.coverage("a")
    assert coverage.seen_tokens == 20
    # The prompt and four times two steps, and then the circuit is open.
    assert coverage.dropped_tokens == {"listener_failed": 10, "circuit_open": 10}
    assert collector.ended == ["a"]


def test_a_pass_that_cannot_be_read_is_dropped_and_never_counted_as_cached(
    started: tuple[Worker, Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, collector = started
    run(target, Step([Scheduled("a", 0, [1, 2])], [new_request("a", [1, 2])]))
    with monkeypatch.context() as patch:
        patch.setattr(worker, "read_pass", lambda *_: 1 / 0)
        run(target, Step([Scheduled("a", 2, [3])]))
    run(target, Step([Scheduled("a", 3, [4])]))
    run(target, Step(finished={"a"}))
    coverage = collector.health.coverage("a")
    assert (coverage.seen_tokens, coverage.cached_tokens) == (4, 0)
    assert coverage.dropped_tokens == {"not_mapped": 2}
    assert [row[0] for row in collector.told["a"]] == [0, 1]
    assert collector.health.counters()[f"failed.{worker.AFTER}.ZeroDivisionError"] == 1
    assert collector.ended == ["a"]


def test_what_vllm_raises_passes_as_it_is(started: tuple[Worker, Collector]) -> None:
    target, _ = started
    with pytest.raises(AttributeError):
        target.execute_model(SimpleNamespace(finished_req_ids=(), scheduled_new_reqs=()))


def test_the_last_token_is_heard_from_an_output_that_comes_later(
    started: tuple[Worker, Collector],
) -> None:
    target, collector = started
    run(target, Step([Scheduled("a", 0, [1, 2])], [new_request("a", [1, 2])]))
    result = SimpleNamespace(req_ids=["a"], sampled_token_ids=[[7]])
    later = SimpleNamespace(get_output=lambda: result)
    assert target.sample_tokens(later).get_output() is result
    run(target, Step(finished={"a"}))
    assert collector.outputs["a"] == [7]


@pytest.mark.parametrize(("stop", "sampled"), [(frozenset({EOS}), EOS), (frozenset(), 7)])
def test_an_answer_that_a_rule_stops_ends_with_a_stop_token_where_one_ends_it(
    started: tuple[Worker, Collector], stop: frozenset[int], sampled: int
) -> None:
    target, collector = started
    new = [new_request("a", [1, 2], stop=stop), new_request("b", [3], stop=stop)]
    run(target, Step([Scheduled("a", 0, [1, 2]), Scheduled("b", 0, [3])], new))
    collector.to_stop.add("a")
    result = SimpleNamespace(req_ids=["a", "b"], sampled_token_ids=[[7], [8]])
    assert target.sample_tokens(result) is result
    assert result.sampled_token_ids == [[sampled], [8]]
    assert collector.stopped == {"a": bool(stop)}


def test_a_request_of_a_very_long_id_is_told_stopped_and_ended_under_a_short_one(
    started: tuple[Worker, Collector],
) -> None:
    target, collector = started
    engine_id = "x" * 5000
    name = bounded(engine_id)
    new = new_request(engine_id, [1, 2], stop=frozenset({EOS}))
    run(target, Step([Scheduled(engine_id, 0, [1, 2])], [new]))
    collector.to_stop.add(name)
    result = SimpleNamespace(req_ids=[engine_id], sampled_token_ids=[[7]])
    target.sample_tokens(result)
    run(target, Step(finished={engine_id}))
    assert result.sampled_token_ids == [[EOS]]
    assert collector.stopped == {name: True}
    assert [row[0] for row in collector.told[name]] == [0, 1]
    assert (collector.outputs, collector.ended) == ({name: [EOS]}, [name])


def test_a_shutdown_ends_what_is_under_way(started: tuple[Worker, Collector]) -> None:
    target, collector = started
    run(target, Step([Scheduled("a", 0, [1, 2])], [new_request("a", [1, 2])]))
    target.shutdown()
    assert (target.was_shut, collector.ended, collector.closed) == (True, ["a"], True)
    assert run(target, Step([Scheduled("b", 0, [1])])) == "ran"


def test_a_start_that_fails_stops_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text("capture: {no_such_key: 1}\n")
    target = Worker()
    worker.watch_worker(target, str(path))
    with pytest.raises(ConfigurationError, match="no_such_key"):
        target.load_model()


def test_a_start_that_fails_leaves_the_engine_unmonitored_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alerts = tmp_path / "alerts.jsonl"
    path = tmp_path / "monitor.yaml"
    path.write_text(f"capture: {{on_failure: serve}}\nalert: {{sinks: [{{jsonl: {alerts}}}]}}\n")
    target = Worker()
    target.vllm_config = config(pipeline_parallel_size=2)  # type: ignore[attr-defined]
    monkeypatch.setattr(worker.WatchedWorker, "_reads", lambda self: True)
    worker.watch_worker(target, str(path))
    assert (target.load_model(), target.compile_or_warm_up_model()) == ("loaded", "warm")
    assert run(target, Step([Scheduled("a", 0, [1, 2])])) == "ran"
    assert "monitor_blind" in alerts.read_text()
    assert "--pipeline-parallel-size" in alerts.read_text()
