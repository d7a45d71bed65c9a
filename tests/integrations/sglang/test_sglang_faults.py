"""What goes wrong stays inside or stops the start: nothing is silently blind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sglang_fakes as sgl
from sglang_watch import Listener, configuration, watch

from nae_monitor.errors import CheckpointError, ConfigurationError, UnsupportedError

SERVE = "capture: {min_position: 0, on_failure: serve}\n"


def run(engine: Any, *requests: sgl.Req) -> None:
    engine.add(*requests)
    engine.run_event_loop()


def test_a_listener_that_fails_is_counted_and_the_engine_runs_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Failing(Listener):
        def rows(self, batch: Any) -> None:
            raise RuntimeError("a listener's own fault")

    configured = configuration(tmp_path, "capture: {min_position: 0, gather_steps: 2}\n")
    double = watch(monkeypatch, configured, Failing())
    request = sgl.Req("a", [1, 2], max_new_tokens=20, stop=frozenset())
    run(double.Scheduler(), request)
    assert len(request.output_ids) == 20
    health = double.host.health
    assert health.is_open("sglang.rows")
    dropped = health.coverage("a").dropped_tokens
    assert set(dropped) == {"listener_failed", "circuit_open"}
    assert sum(dropped.values()) == health.coverage("a").seen_tokens >= 21
    assert double.host.listener.ended == ["a"]


def test_a_pass_whose_rows_cannot_be_mapped_is_dropped_and_never_counted_as_cached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine = double.Scheduler()
    plain = engine._batch

    def without_lengths(*args: Any) -> Any:
        batch = plain(*args)
        if len(request.output_ids) == 2:
            run_as_it_is(batch)
        return batch

    def run_as_it_is(batch: Any) -> None:
        forward = engine.tp_worker.model_runner.forward

        def lengths_leave(ids: Any, positions: Any) -> Any:
            batch.seq_lens_cpu = None
            engine.tp_worker.model_runner.forward = forward
            return forward(ids, positions)

        engine.tp_worker.model_runner.forward = lengths_leave

    engine._batch = without_lengths
    request = sgl.Req("a", [1, 2, 3], max_new_tokens=8, stop=frozenset())
    run(engine, request)
    coverage = double.host.health.coverage("a")
    assert coverage.cached_tokens == 0
    assert coverage.dropped_tokens.keys() == {"not_mapped"}
    assert len(listener.told["a"]) + coverage.dropped_tokens["not_mapped"] >= 10
    assert double.host.health.counters()["failed.sglang.after_pass.UnsupportedError"] == 1
    assert listener.ended == ["a"]


def test_a_graph_that_leaves_the_tap_out_is_noticed_in_every_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine = double.Scheduler(overlap=False)
    engine.runner.skips_block = True
    run(engine, sgl.Req("a", [1, 2, 3], max_new_tokens=3))
    assert listener.told["a"] == []
    assert double.host.health.coverage("a").dropped_tokens == {"not_captured": 5}
    assert double.host.health.counters()["blind.no_rows"] == 3


def test_rows_that_do_not_fit_the_buffer_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    sizes = {"prefill": 8, "schedule__max_running_requests": None}
    double = watch(monkeypatch, configuration(tmp_path), listener, **sizes)
    run(double.Scheduler(), sgl.Req("a", range(20), max_new_tokens=3))
    assert double.host.health.coverage("a").dropped_tokens == {"buffer_full": 20}
    assert [position for position, _, _ in listener.told["a"]][:2] == [20, 21]


def test_what_runs_is_ended_and_the_host_closed_when_the_scheduler_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    double = watch(monkeypatch, configuration(tmp_path), listener)
    engine = double.Scheduler()

    def fail(step: int) -> None:
        if step == 5:
            raise KeyError("the scheduler's own fault")

    engine.on_step = fail
    with pytest.raises(KeyError):
        run(engine, sgl.Req("a", [1, 2, 3], max_new_tokens=20))
    assert (listener.ended, double.host.closed) == (["a"], True)


UNSUPPORTED = {
    "parallel__pp_size": (2, "--pp-size"),
    "parallel__attn_cp_size": (2, "--attn-cp-size"),
    "parallel__attn_dp_enabled": (True, "--enable-dp-attention"),
    "parallel__enable_layernorm_sp": (True, "sequence parallelism"),
    "parallel__enable_attn_tp_input_scattered": (True, "sequence parallelism"),
    "disagg__disaggregation_mode": ("prefill", "--disaggregation-mode"),
    "disagg__enable_pdmux": (True, "--enable-pdmux"),
    "exec__overlap__enable_two_batch_overlap": (True, "--enable-two-batch-overlap"),
    "exec__dllm__dllm_algorithm": ("LowConfidence", "--dllm-algorithm"),
    "exec__features__enable_encoder_swa_bounded_replay": (True, "swa-bounded-replay"),
    "serving__skip_tokenizer_init": (True, "--skip-tokenizer-init"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_settings_under_which_rows_get_mixed_up_stop_the_start(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    value, said = UNSUPPORTED[name]
    double = watch(monkeypatch, configuration(tmp_path), Listener(), **{name: value})
    with pytest.raises(ConfigurationError, match=said):
        double.Scheduler()


def test_every_unsupported_setting_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "actions: {stop_generation: enforce, hold_s: 1}\n"
    changes = {"parallel__pp_size": 2, "disagg__enable_pdmux": True}
    double = watch(monkeypatch, configuration(tmp_path, text), Listener(), **changes)
    with pytest.raises(ConfigurationError) as caught:
        double.Scheduler()
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("fit", [(sgl.LAYER, sgl.D_MODEL + 1), (sgl.BLOCKS, sgl.D_MODEL)])
def test_a_pair_for_another_model_stops_the_start(
    fit: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    double = watch(monkeypatch, configuration(tmp_path), Listener(), fit)
    with pytest.raises(CheckpointError, match="the served model has"):
        double.Scheduler()


def test_a_model_whose_blocks_have_no_callback_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    double = watch(monkeypatch, configuration(tmp_path), Listener())
    with pytest.raises(UnsupportedError, match="OldBlock has no capture_output"):
        double.Scheduler(sgl.Model(sgl.OldBlock))


def test_graphs_that_were_captured_without_writing_a_row_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    double = watch(monkeypatch, configuration(tmp_path), Listener())
    double.ModelRunner.decode_cuda_graph_runner = object()
    with pytest.raises(UnsupportedError, match="do not reach the tap"):
        double.Scheduler()


def test_a_start_that_fails_leaves_the_engine_unmonitored_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alerts = tmp_path / "alerts.jsonl"
    text = f"{SERVE}alert: {{sinks: [{{jsonl: {alerts}}}]}}\n"
    listener = Listener()
    changes = {"parallel__pp_size": 2}
    double = watch(monkeypatch, configuration(tmp_path, text), listener, **changes)
    request = sgl.Req("a", [1, 2])
    run(double.Scheduler(), request)
    assert request.finished()
    assert listener.told == {}
    assert "monitor_blind" in alerts.read_text()
    assert "--pp-size" in alerts.read_text()


def test_other_tensor_parallel_ranks_tap_as_well_but_only_the_first_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    changes = {"parallel__tp_rank": 1}
    double = watch(monkeypatch, configuration(tmp_path), listener, **changes)
    engine = double.Scheduler()
    run(engine, sgl.Req("a", [1, 2]))
    assert (double.opened, listener.told) == ([], {})
    assert "forward" in vars(engine.runner.model.layers[sgl.LAYER])


def test_a_draft_models_runner_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    double = watch(monkeypatch, configuration(tmp_path), Listener())
    model = sgl.Model(sgl.OldBlock)
    draft = double.ModelRunner(model, is_draft_worker=True)
    draft.load_model()
    assert not any("forward" in vars(layer) for layer in model.layers)
