"""One vLLM worker under watch: its start, its passes, its end."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from nae_monitor.errors import UnsupportedError
from nae_monitor.integrations.engines import hosts
from nae_monitor.integrations.engines.buffer import blocks_of
from nae_monitor.integrations.engines.fit import layer_of, refuse_other_model
from nae_monitor.integrations.engines.handover import Handover
from nae_monitor.integrations.engines.identity import bounded
from nae_monitor.integrations.engines.tracker import Tracker
from nae_monitor.integrations.vllm.identity import begun
from nae_monitor.integrations.vllm.passes import check_runner, read_pass
from nae_monitor.integrations.vllm.self_test import self_test
from nae_monitor.integrations.vllm.tap import MODES, Mode, Tap
from nae_monitor.integrations.vllm.unsupported import refuse_unsupported
from nae_monitor.settings import Settings

log = logging.getLogger("nae_monitor")

BEFORE, AFTER, ROWS, SAMPLED = (
    f"vllm.{part}" for part in ("before_pass", "after_pass", "rows", "sampled")
)


def watch_worker(worker: Any, path: str) -> None:
    """Wrap a worker's own methods; ``path`` is the configuration's."""
    watched = WatchedWorker(worker, path)

    def wrap(name: str, around: Callable[..., Any]) -> None:
        plain = getattr(worker, name)
        setattr(worker, name, functools.wraps(plain)(functools.partial(around, plain)))

    wrap("load_model", watched.load_model)
    wrap("compile_or_warm_up_model", watched.warm_up)
    wrap("execute_model", watched.execute_model)
    wrap("sample_tokens", watched.sample_tokens)
    wrap("shutdown", watched.shutdown)


class WatchedWorker:
    """Watches one worker. Every rank taps, for the graph is the same on all; one of them reads."""

    def __init__(self, worker: Any, path: str) -> None:
        self._worker = worker
        self._path = path
        self._settings: Settings | None = None
        self._tap: Tap | None = None
        self._mode: Mode = "op"
        self._host: hosts.Host | None = None
        self._tracker: Tracker | None = None
        self._handover: Handover | None = None
        self._sampled: deque[tuple[str, int]] = deque()  # filled by vLLM's output thread too
        self._on = False

    def load_model(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Put the tap on the model that was loaded, before anything compiles it."""
        result = plain(*args, **kwargs)
        self._starting(self._install)
        return result

    def warm_up(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See that the graph which will serve writes what the block computes; then begin."""
        result = plain(*args, **kwargs)
        if self._tap is not None:
            self._starting(self._begin)
        return result

    def execute_model(
        self, plain: Callable[..., Any], scheduler_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Run a step, and hand on its rows."""
        if not self._on:
            return plain(scheduler_output, *args, **kwargs)
        self._guarded(BEFORE, lambda: self._before(scheduler_output))
        result = plain(scheduler_output, *args, **kwargs)
        self._guarded(AFTER, lambda: self._after(scheduler_output))
        self._hand_on()
        return result

    def sample_tokens(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note what was sampled; no pass sees an answer's last token."""
        result = plain(*args, **kwargs)
        if self._on and result is not None:
            self._guarded(SAMPLED, lambda: self._hear(result))
        return result

    def shutdown(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """End what is under way, and close."""
        try:
            self._end()
        finally:
            result = plain(*args, **kwargs)
        return result

    def _starting(self, step: Callable[[], None]) -> None:
        """A step of the start; its failure stops the engine, or leaves it unmonitored."""
        try:
            step()
        except Exception as error:
            self._on = False
            self._close_host()
            settings = self._settings
            if settings is None or settings.capture.on_failure != "serve":
                raise
            if self._reads():
                hosts.tell_blind(settings, "vllm", error)
            self._tap = None

    def _install(self) -> None:
        settings = self._settings = Settings.from_yaml(self._path)
        config, runner = self._worker.vllm_config, self._worker.model_runner
        refuse_unsupported(config, settings)
        check_runner(runner)
        if self._reads():
            self._host = hosts.open_host(settings, self._tokenizer)
            layer, d_model = self._host.layer, self._host.d_model
        else:
            layer, d_model = layer_of(settings)
        self._tap, self._mode = self._tapped(layer, d_model)

    def _tapped(self, layer: int, d_model: int) -> tuple[Tap, Mode]:
        """A tap by the first way that passes its test; UnsupportedError names every failure."""
        config, model = self._worker.vllm_config, self._worker.model_runner.get_model()
        text = config.model_config.hf_text_config
        refuse_other_model(
            d_served=text.hidden_size,
            blocks=text.num_hidden_layers,
            layer=layer,
            d_model=d_model,
        )
        block = blocks_of(model, text.num_hidden_layers)[layer - 1]
        parameter = next(block.parameters())
        rows = torch.zeros(
            config.scheduler_config.max_num_batched_tokens,
            d_model,
            dtype=config.model_config.dtype,
            device=parameter.device,
        )
        why = []
        for mode in self._modes():
            tap = Tap(model, block, layer, rows)
            try:
                tap.install(mode)
                self_test(tap, config, mode, compiled=False)
                return tap, mode
            except Exception as error:  # noqa: BLE001 - the next way may do
                tap.remove()
                why.append(f"{mode}: {hosts.reason_of(error)}")
        raise UnsupportedError(f"no way to tap this model works: {'; '.join(why)}")

    def _modes(self) -> Iterable[Mode]:
        wanted = self._settings.vllm.tap if self._settings is not None else "auto"
        return MODES if wanted == "auto" else (wanted,)

    def _begin(self) -> None:
        settings, tap = self._settings, self._tap
        if settings is None or tap is None:
            return
        error = self_test(tap, self._worker.vllm_config, self._mode, compiled=True)
        if self._host is None:
            return
        health = self._host.health
        self._tracker = Tracker(
            self._host.listener,
            health,
            settings.capture,
            layer=tap.layer,
        )
        self._handover = Handover(
            self._tracker, tap.rows, lambda _: health.count("blind.no_rows"), settings
        )
        self._on = True
        log.warning(
            "nae_monitor watches this engine: %s, layer %d, self-test %.1e",
            self._mode, tap.layer, error,
        )  # fmt: skip

    def _before(self, scheduler_output: Any) -> None:
        tracker, handover = self._tracker, self._handover
        if tracker is None or handover is None:
            return
        self._learn(tracker)
        for request_id in scheduler_output.finished_req_ids:
            handover.note(functools.partial(tracker.finish, request_id))
        for new in scheduler_output.scheduled_new_reqs:
            handover.note(functools.partial(self._start_request, tracker, new))
        handover.before_pass()

    def _start_request(self, tracker: Tracker, new: Any) -> None:
        settings = self._settings
        if settings is not None:
            tracker.begin(begun(new, settings.target.model))

    def _after(self, scheduler_output: Any) -> None:
        tracker, handover = self._tracker, self._handover
        if tracker is None or handover is None:
            return
        try:
            taken = read_pass(self._worker.model_runner, scheduler_output)
        except Exception:
            for request_id in scheduler_output.num_scheduled_tokens:
                handover.note(functools.partial(tracker.give_up, request_id, "not_mapped"))
            raise
        if taken is not None:
            handover.take(taken)

    def _hand_on(self) -> None:
        handover, quiet = self._handover, self._is_open(ROWS)
        if handover is not None and (quiet or handover.is_due):
            self._guarded(ROWS, lambda: handover.hand_on(quiet=quiet))

    def _hear(self, output: Any) -> None:
        get_output = getattr(output, "get_output", None)
        if get_output is None:
            self._look_at(output)
            return

        @functools.wraps(get_output)
        def heard(*args: Any, **kwargs: Any) -> Any:
            result = get_output(*args, **kwargs)
            self._guarded(SAMPLED, lambda: self._look_at(result))
            return result

        output.get_output = heard

    def _look_at(self, output: Any) -> None:
        """Note the tokens just sampled, and end the answers that rules stop."""
        host, tracker = self._host, self._tracker
        if host is None or tracker is None:
            return
        sampled = output.sampled_token_ids
        for index, request_id in enumerate(output.req_ids):
            if not len(sampled[index]):
                continue
            name = bounded(request_id)
            if host.should_stop(name):
                stop = tracker.stop_token(request_id)
                host.confirm_stop(name, ended=stop is not None)
                if stop is not None:
                    # The scheduler ends an answer at this token, on every kind of executor.
                    sampled[index] = [stop]
            self._sampled.append((request_id, int(sampled[index][-1])))

    def _learn(self, tracker: Tracker) -> None:
        while self._sampled:
            tracker.sampled(*self._sampled.popleft())

    def _guarded(self, component: str, work: Callable[[], None]) -> None:
        if self._host is not None:
            with self._host.health.guard(component):
                work()

    def _is_open(self, component: str) -> bool:
        return self._host is not None and self._host.health.is_open(component)

    def _end(self) -> None:
        tracker, handover = self._tracker, self._handover
        self._on = False
        if tracker is not None and handover is not None:

            def end() -> None:
                self._learn(tracker)
                handover.hand_on(all_of_it=True)
                for request_id in tracker.live:
                    tracker.finish(request_id)

            self._guarded(ROWS, end)
        self._close_host()

    def _close_host(self) -> None:
        if self._host is not None:
            with self._host.health.guard("vllm.close"):
                self._host.close()
            self._host = None

    def _reads(self) -> bool:
        from vllm.distributed import get_tensor_model_parallel_rank

        return bool(get_tensor_model_parallel_rank() == 0)

    def _tokenizer(self) -> Any:
        from vllm.tokenizers import cached_tokenizer_from_config

        return cached_tokenizer_from_config(self._worker.vllm_config.model_config)
