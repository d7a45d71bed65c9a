"""A tiny model under the whole monitor: everything is real but the decoder."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from monitor_parts import (
    D_MODEL,
    LAYER,
    NEVER,
    generate,
    monitor,
    prompt,
    prompts,
    target,
    tokenizer,
)

from nae_monitor.capture.blocks import decoder_block
from nae_monitor.errors import CheckpointError, ConfigurationError, UnsupportedError
from nae_monitor.monitor import Monitor
from nae_monitor.recording import Recording
from nae_monitor.records import Verdict, VerdictState
from nae_monitor.replay import replay
from nae_monitor.settings import (
    BudgetSettings,
    CaptureSettings,
    PolicySettings,
    PrivacySettings,
    RecordSettings,
    ScreenSettings,
)
from nae_monitor.testing import FakeDecoder
from nae_monitor.verdicts import is_balanced

EVERYTHING = ScreenSettings(
    every_n_tokens=1,
    random_share=0.0,
    budget=BudgetSettings(decodes_per_s=1e6, per_request=10_000),
)


@pytest.fixture(scope="module")
def model() -> Any:
    return target()


def findings_of(run: Path) -> list[bytes]:
    return sorted((run / "findings.jsonl").read_bytes().splitlines())


def replayed(watched: Monitor, directory: Path, recording: Path | None = None) -> Path:
    """The closed monitor's recording, or a replay of it, judged again by its own rules."""
    assert watched.recording is not None
    parts = watched._parts
    run = replay(
        [recording or watched.recording],
        directory,
        decoder=FakeDecoder(D_MODEL, LAYER),
        judge=parts.judge,
        mode="live",
    )
    assert run.judged
    return run.directory


def assert_settled(verdict: Verdict) -> None:
    assert is_balanced(verdict.coverage)
    assert verdict.coverage.judged_tokens == verdict.coverage.sampled_tokens > 0


def alerts_in(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "alerts.jsonl").read_text().splitlines()]


def test_a_request_from_prompt_to_verdict_alert_recording_and_replay(
    model: Any, tmp_path: Path
) -> None:
    watched = monitor(tmp_path)
    with watched.watch(model, tokenizer()), watched.request("r1", session_id="s", tenant="t"):
        generate(model, prompt())
    verdict = watched.verdict("r1", wait_s=120.0)
    assert verdict.state is VerdictState.ALERT
    assert_settled(verdict)
    assert watched.close() is True
    alerts = alerts_in(tmp_path)
    assert {alert["subject"] for alert in alerts} == {"r1"}
    assert len(alerts) == len({finding.rule_id for finding in verdict.findings})
    assert watched.recording is not None
    assert findings_of(watched.recording) == findings_of(replayed(watched, tmp_path / "again"))
    (record,) = Recording.open(watched.recording).requests()
    assert (record.state, record.coverage.judged_tokens) == (
        verdict.state,
        verdict.coverage.judged_tokens,
    )


def test_a_request_in_which_nothing_is_found_is_clean(model: Any, tmp_path: Path) -> None:
    watched = monitor(tmp_path, rules=NEVER)
    with watched.watch(model, tokenizer()), watched.request("r1"):
        generate(model, prompt())
    verdict = watched.verdict("r1", wait_s=120.0)
    assert (verdict.state, verdict.reasons) == (VerdictState.CLEAN, ())
    watched.close()


def test_generation_is_the_same_with_the_monitor_and_without(model: Any, tmp_path: Path) -> None:
    plain = generate(model, prompt())
    watched = monitor(tmp_path)
    with watched.watch(model, tokenizer()):
        assert torch.equal(generate(model, prompt()), plain)
        with torch.inference_mode():
            assert torch.equal(generate(model, prompt()), plain)
    watched.close()
    assert not [name for name in watched.health.counters() if name.startswith("failed")]


def test_a_batch_with_padding_has_a_verdict_for_each_row_and_for_all(
    model: Any, tmp_path: Path
) -> None:
    watched = monitor(tmp_path)
    with watched.watch(model, tokenizer()), watched.request("b"):
        generate(model, prompts("some words", "some plain words to learn from, again", "again"))
    whole = watched.verdict("b", wait_s=120.0)
    rows = [watched.verdict(f"b#{i}", wait_s=0.0) for i in range(3)]
    assert whole.coverage.judged_tokens == sum(row.coverage.judged_tokens for row in rows)
    for row in rows:
        assert_settled(row)
    assert len(whole.findings) == sum(len(row.findings) for row in rows)
    watched.close()
    assert watched.recording is not None
    assert findings_of(watched.recording) == findings_of(replayed(watched, tmp_path / "again"))


def test_several_sequences_of_one_prompt_and_named_rows(model: Any, tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    with watched.watch(model, tokenizer()), watched.request(["x", "y"]):
        torch.manual_seed(1)
        generate(model, prompts("some words", "plain"), do_sample=True, num_return_sequences=2)
    for group in ("x", "y"):
        whole = watched.verdict(group, wait_s=120.0)
        rows = [watched.verdict(f"{group}#{i}", wait_s=0.0) for i in range(2)]
        assert_settled(whole)
        assert whole.coverage.seen_tokens == sum(row.coverage.seen_tokens for row in rows)
    watched.close()
    assert watched.recording is not None
    assert findings_of(watched.recording) == findings_of(replayed(watched, tmp_path / "again"))


def test_two_threads_that_generate_at_once(model: Any, tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    expected = [generate(model, prompt(text)) for text in ("some plain words", "to learn")]
    outputs: dict[int, torch.Tensor] = {}

    def serve(number: int, text: str) -> None:
        for turn in range(3):
            with watched.request(f"t{number}-{turn}"):
                outputs[number] = generate(model, prompt(text))

    with watched.watch(model, tokenizer()):
        threads = [
            threading.Thread(target=serve, args=pair)
            for pair in enumerate(("some plain words", "to learn"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(2):
        assert torch.equal(outputs[number], expected[number])
        for turn in range(3):
            assert_settled(watched.verdict(f"t{number}-{turn}", wait_s=120.0))
    assert watched.close() is True
    assert watched.recording is not None
    assert findings_of(watched.recording) == findings_of(replayed(watched, tmp_path / "again"))


def test_a_conversation_over_two_turns_keeps_one_ledger_and_replays(
    model: Any, tmp_path: Path
) -> None:
    from transformers import DynamicCache

    watched = monitor(tmp_path)
    cache = DynamicCache(config=model.config)
    with watched.watch(model, tokenizer()), watched.request("talk"):
        first = generate(model, prompt(), past_key_values=cache)
        more = torch.cat([first, prompt("and again")["input_ids"]], dim=1)
        second = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        last = generate(model, second, past_key_values=cache)
    verdict = watched.verdict("talk", wait_s=120.0)
    assert_settled(verdict)
    assert verdict.coverage.seen_tokens == last.shape[1] - 1
    watched.close()
    assert watched.recording is not None
    again = replayed(watched, tmp_path / "again")
    assert findings_of(again) == findings_of(watched.recording)
    assert findings_of(replayed(watched, tmp_path / "twice", again)) == findings_of(again)
    assert len(list(Recording.open(again).requests())) == 2


def test_outside_the_block_the_model_is_untouched(model: Any, tmp_path: Path) -> None:
    def hooks() -> list[Any]:
        return [
            hook
            for module in model.modules()
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ]

    before, patched = hooks(), dict(model.__dict__)
    watched = monitor(tmp_path)
    with watched.watch(model, tokenizer()):
        assert "generate" in model.__dict__
    assert (hooks(), model.__dict__) == (before, patched)
    with pytest.raises(RuntimeError, match="theirs"), watched.watch(model, tokenizer()):
        raise RuntimeError("theirs")
    assert (hooks(), model.__dict__) == (before, patched)
    watched.close()
    assert watched.verdict("nothing", wait_s=0.0).state is VerdictState.UNDECIDED


def test_an_interrupted_generation_still_gets_a_verdict(model: Any, tmp_path: Path) -> None:
    class Stop:
        steps = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            if self.steps == 4:
                raise KeyboardInterrupt
            return scores

    watched = monitor(tmp_path)
    with (
        watched.watch(model, tokenizer()),
        watched.request("r"),
        pytest.raises(KeyboardInterrupt),
    ):
        generate(model, prompt(), logits_processor=[Stop()])
    assert_settled(watched.verdict("r", wait_s=120.0))
    assert watched.close() is True


def test_watching_again_goes_on_and_closing_again_says_the_same(model: Any, tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    for name in ("one", "two"):
        with watched.watch(model, tokenizer()), watched.request(name):
            generate(model, prompt())
    for name in ("one", "two"):
        assert_settled(watched.verdict(name, wait_s=120.0))
    assert watched.close() is True
    assert watched.close() is True
    with pytest.raises(UnsupportedError, match="closed"), watched.watch(model, tokenizer()):
        pass


def test_a_model_is_not_watched_twice_at_once(model: Any, tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    with (
        watched.watch(model, tokenizer()),
        pytest.raises(UnsupportedError, match="already"),
        watched.watch(model, tokenizer()),
    ):
        pass
    with watched.watch(model, tokenizer()), watched.request("r"):
        generate(model, prompt())
    assert_settled(watched.verdict("r", wait_s=120.0))
    watched.close()


def test_two_models_one_after_another_and_at_once(model: Any, tmp_path: Path) -> None:
    watched, other = monitor(tmp_path), target(seed=4)
    for name, one in (("first", model), ("second", other)):
        with watched.watch(one, tokenizer()), watched.request(name):
            generate(one, prompt())
    with watched.watch(model, tokenizer()), watched.watch(other, tokenizer()):
        with watched.request("third"):
            generate(model, prompt())
        with watched.request("fourth"):
            generate(other, prompt())
    verdicts = {
        name: watched.verdict(name, wait_s=120.0) for name in ("first", "second", "third", "fourth")
    }
    for verdict in verdicts.values():
        assert_settled(verdict)
    watched.close()
    assert watched.recording is not None
    assert findings_of(watched.recording) == findings_of(replayed(watched, tmp_path / "again"))


def test_a_model_of_another_width_is_refused(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    with (
        pytest.raises(CheckpointError, match="width 32, the watched model has 64"),
        watched.watch(target(d_model=64), tokenizer()),
    ):
        pass
    watched.close()


def test_something_that_is_no_model_is_refused(tmp_path: Path) -> None:
    watched = monitor(tmp_path)
    with pytest.raises(UnsupportedError), watched.watch(torch.nn.Linear(2, 2), tokenizer()):
        pass
    watched.close()


def test_a_model_that_computes_nan_is_undecided_not_clean(tmp_path: Path) -> None:
    watched, broken = monitor(tmp_path, rules=NEVER), target()
    with watched.watch(broken, tokenizer()), watched.request("r"):
        with torch.no_grad():
            decoder_block(broken, LAYER).mlp.down_proj.weight[0, 0] = torch.nan  # type: ignore[union-attr,index]
        generate(broken, prompt())
    verdict = watched.verdict("r", wait_s=120.0)
    assert verdict.state is VerdictState.UNDECIDED
    coverage = verdict.coverage
    assert coverage.dropped_tokens == {"bad_vector_non_finite": coverage.sampled_tokens}
    assert is_balanced(coverage)
    watched.close()


def test_a_budget_of_nothing_leaves_every_request_undecided(model: Any, tmp_path: Path) -> None:
    screen = ScreenSettings(budget=BudgetSettings(per_request=0))
    watched = monitor(tmp_path, screen=screen)
    with watched.watch(model, tokenizer()), watched.request("r"):
        generate(model, prompt())
    verdict = watched.verdict("r", wait_s=120.0)
    assert verdict.state is VerdictState.UNDECIDED
    assert verdict.reasons == ("judged 0 tokens, the policy asks for 1",)
    watched.close()


def test_a_policy_that_asks_for_more_is_not_met(model: Any, tmp_path: Path) -> None:
    watched = monitor(tmp_path, rules=NEVER, policy=PolicySettings(min_judged_tokens=1000))
    with watched.watch(model, tokenizer()), watched.request("r"):
        generate(model, prompt())
    assert watched.verdict("r", wait_s=120.0).state is VerdictState.UNDECIDED
    watched.close()


def test_excluded_phases_balance(model: Any, tmp_path: Path) -> None:
    capture = CaptureSettings(min_position=5, phases=("completion",))
    watched = monitor(tmp_path, rules=NEVER, capture=capture)
    with watched.watch(model, tokenizer()), watched.request("r"):
        generate(model, prompt())
    verdict = watched.verdict("r", wait_s=120.0)
    assert verdict.state is VerdictState.CLEAN
    assert verdict.coverage.excluded_tokens > 0
    watched.close()


@pytest.mark.parametrize("content", ["hash", "none"])
def test_withheld_content_is_withheld_and_findings_are_the_same(
    model: Any, tmp_path: Path, content: Any
) -> None:
    found = []
    for name, privacy in (("open", "full"), ("withheld", content)):
        watched = monitor(tmp_path / name, privacy=PrivacySettings(privacy))
        with watched.watch(model, tokenizer()), watched.request("r"):
            generate(model, prompt())
        found.append([(f.rule_id, f.position) for f in watched.verdict("r", 20.0).findings])
        watched.close()
    assert found[0] == found[1]
    written = b"".join(p.read_bytes() for p in (tmp_path / "withheld").rglob("*") if p.is_file())
    assert b"coordinate 1" not in written
    assert b"plain words" not in written


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The disk refuses what makes a file longer than this (EFBIG), as a full one would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_counted_and_told_and_hurts_neither_generation_nor_alerts(
    model: Any, tmp_path: Path
) -> None:
    plain = generate(model, prompt(), max_new_tokens=120, min_new_tokens=120)
    watched = monitor(tmp_path, screen=EVERYTHING)
    with watched.watch(model, tokenizer()), files_of_at_most(20_000), watched.request("r"):
        output = generate(model, prompt(), max_new_tokens=120, min_new_tokens=120)
        verdict = watched.verdict("r", wait_s=120.0)
        watched.close()
    assert torch.equal(output, plain)
    counters = watched.health.counters()
    assert counters["record.lost_findings"] > 0
    assert verdict.state is VerdictState.ALERT
    assert counters["tokens.judged"] == counters["tokens.sampled"]
    alerts = alerts_in(tmp_path)
    titles = [alert["data"]["finding_info"]["title"] for alert in alerts]
    assert "Monitor is blind: record.findings (the recording cannot be written)" in titles
    assert len(titles) >= 2


def test_a_recording_that_lost_rows_is_never_clean(model: Any, tmp_path: Path) -> None:
    watched = monitor(tmp_path, rules=NEVER)
    with watched.watch(model, tokenizer()), watched.request("r"):
        assert watched.recording is not None
        watched.recording.rename(tmp_path / "moved away")
        generate(model, prompt())
        verdict = watched.verdict("r", wait_s=120.0)
    assert verdict.state is VerdictState.UNDECIDED
    assert any("the recording is incomplete" in reason for reason in verdict.reasons)
    assert watched.health.counters()["record.lost_activations"] > 0
    assert watched.close() is False


def test_a_recording_that_cannot_be_opened_stops_the_start(model: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    watched = monitor(tmp_path, record=RecordSettings(str(blocked)))
    with pytest.raises(ConfigurationError), watched.watch(model, tokenizer()):
        pass
    assert "generate" not in model.__dict__
    watched.close()


def test_an_observer_sees_every_judged_row_with_its_text(model: Any, tmp_path: Path) -> None:
    seen: list[Any] = []
    watched = monitor(tmp_path, observer=lambda *row: seen.append(row))
    with watched.watch(model, tokenizer()), watched.request("r"):
        output = generate(model, prompt())
    verdict = watched.verdict("r", wait_s=120.0)
    watched.close()
    assert len(seen) == verdict.coverage.judged_tokens
    text = tokenizer().decode(output[0])
    assert all(activation.token in text for activation, _, _ in seen)
