"""One SGLang scheduler process under watch: its start, its passes, its end."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nae_monitor.integrations.engines import hosts
from nae_monitor.integrations.engines.buffer import blocks_of
from nae_monitor.integrations.engines.fit import layer_of, refuse_other_model
from nae_monitor.integrations.engines.handover import Handover
from nae_monitor.integrations.engines.passes import Pass
from nae_monitor.integrations.engines.tracker import Tracker
from nae_monitor.integrations.sglang.facts import Facts, read_facts, refuse_unsupported
from nae_monitor.integrations.sglang.requests import begun, parts_of
from nae_monitor.integrations.sglang.tap import Tap
from nae_monitor.settings import Settings

log = logging.getLogger("nae_monitor")

BEFORE, AFTER, RESULT, ROWS = (
    f"sglang.{part}" for part in ("before_pass", "after_pass", "results", "rows")
)
SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"


class WatchedEngine:
    """Watches the scheduler of its process. Every rank taps, as ranks talk within a block.

    The methods that :meth:`hooks` names run around SGLang's own; ``plain`` is the latter.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._settings: Settings | None = None
        self._facts: Facts | None = None
        self._tap: Tap | None = None
        self._host: hosts.Host | None = None
        self._tracker: Tracker | None = None
        self._handover: Handover | None = None
        self._known: dict[str, Any] = {}  # requests under way, by id
        self._on = False

    def hooks(self) -> Mapping[str, Callable[..., Any]]:
        """What runs around what."""
        return {
            "sglang.srt.model_executor.model_runner.ModelRunner.load_model": self.load_model,
            "sglang.srt.managers.tp_worker.TpModelWorker.forward_batch_generation": self.forward,
            f"{SCHEDULER}.init_model_worker": self.init_model_worker,
            f"{SCHEDULER}.process_batch_result": self.process_batch_result,
            f"{SCHEDULER}.send_abort_output": self.send_abort_output,
            f"{SCHEDULER}.run_event_loop": self.run_event_loop,
        }

    def load_model(self, plain: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
        """Put the tap on the model that was loaded, before any graph is captured."""
        result = plain(runner, *args, **kwargs)
        if not runner.is_draft_worker:
            self._starting(lambda: self._install(runner))
        return result

    def init_model_worker(
        self, plain: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Begin, once graphs are captured."""
        result = plain(scheduler, *args, **kwargs)
        if self._tap is not None:
            self._starting(lambda: self._begin(scheduler))
        return result

    def forward(
        self,
        plain: Callable[..., Any],
        worker: Any,
        batch: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run a pass, and take its rows, on the stream that runs the model."""
        if not self._on or batch is None:
            return plain(worker, batch, *args, **kwargs)
        self._guarded(BEFORE, lambda: self._before(batch))
        result = plain(worker, batch, *args, **kwargs)
        self._guarded(AFTER, lambda: self._after(batch))
        return result

    def process_batch_result(
        self, plain: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """SGLang has waited for the pass; hand on its rows, and end what has ended."""
        result = plain(scheduler, batch, *args, **kwargs)
        if self._on:
            self._guarded(RESULT, lambda: self._ended(batch))
            self._hand_on()
        return result

    def send_abort_output(
        self,
        plain: Callable[..., Any],
        scheduler: Any,
        abort: Any,
        request: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """End a request that ends without a pass."""
        result = plain(scheduler, abort, request, *args, **kwargs)
        if self._on:
            self._guarded(RESULT, lambda: self._end_request(request))
        return result

    def run_event_loop(
        self, plain: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Serve; then end what is under way, and close."""
        try:
            return plain(scheduler, *args, **kwargs)
        finally:
            self._close()

    def _starting(self, step: Callable[[], None]) -> None:
        """A step of the start; its failure stops the engine, or leaves it unmonitored."""
        try:
            step()
        except Exception as error:
            self._on = False
            self._tap = None  # it stays on the model, as on the other ranks: they must do the same
            self._close_host()
            settings = self._settings
            if settings is None or settings.capture.on_failure != "serve":
                raise
            if self._facts is None or self._facts.rank == 0:
                hosts.tell_blind(settings, "sglang", error)

    def _install(self, runner: Any) -> None:
        settings = self._settings = Settings.from_yaml(self._path)
        facts = self._facts = read_facts(runner)
        refuse_unsupported(facts, settings)
        layer, d_model = layer_of(settings)
        config = runner.model_config
        blocks = int(config.num_hidden_layers)
        refuse_other_model(d_served=config.hidden_size, blocks=blocks, layer=layer, d_model=d_model)
        block = blocks_of(runner.model, blocks)[layer]
        device = next(block.parameters()).device
        rows = torch.zeros(facts.buffer_tokens, d_model, dtype=config.dtype, device=device)
        self._tap = Tap(block, rows)

    def _begin(self, scheduler: Any) -> None:
        settings, tap, facts = self._settings, self._tap, self._facts
        if settings is None or tap is None or facts is None:
            return
        tap.check_graphs(scheduler.tp_worker.model_runner)
        if facts.rank:
            return
        host = self._host = hosts.open_host(settings, lambda: scheduler.tokenizer)
        self._tracker = Tracker(host.listener, host.health, settings.capture, layer=host.layer)
        self._handover = Handover(
            self._tracker, tap.rows, lambda _: host.health.count("blind.no_rows"), settings
        )
        self._on = True
        log.warning("nae_monitor watches this engine (SGLang: experimental), layer %d", host.layer)

    def _before(self, batch: Any) -> None:
        tracker, handover, settings = self._tracker, self._handover, self._settings
        if tracker is None or handover is None or settings is None:
            return
        for request in batch.reqs:
            if self._known.get(request.rid) is not request:
                self._known[request.rid] = request
                new = begun(request, settings.target.model)
                handover.note(functools.partial(tracker.begin, new))
        handover.before_pass()

    def _after(self, batch: Any) -> None:
        tracker, handover, tap = self._tracker, self._handover, self._tap
        if tracker is None or handover is None or tap is None:
            return
        try:
            parts = parts_of(batch)
        except Exception:
            for request in batch.reqs:
                handover.note(functools.partial(tracker.give_up, request.rid, "not_mapped"))
            raise
        kept = tuple(part for part in parts if part.offset + part.count <= len(tap.rows))
        taken = Pass(kept, batch.input_ids)
        if kept:
            handover.take(Pass(kept, batch.input_ids[: taken.tokens]))
        if len(kept) < len(parts):
            lose = functools.partial(tracker.lose, parts[len(kept) :], "buffer_full")
            handover.note(lose)

    def _ended(self, batch: Any) -> None:
        for request in batch.reqs:
            if request.finished():
                self._end_request(request)

    def _hand_on(self) -> None:
        handover = self._handover
        quiet = any(self._is_open(component) for component in (AFTER, RESULT, ROWS))
        if handover is not None and (quiet or handover.is_due):
            self._guarded(ROWS, lambda: handover.hand_on(quiet=quiet))

    def _end_request(self, request: Any) -> None:
        tracker, handover = self._tracker, self._handover
        known: Any = self._known.get(request.rid)
        if tracker is None or handover is None or known is None or known is not request:
            return
        del self._known[request.rid]
        output = tuple(int(token) for token in request.output_ids)
        handover.note(functools.partial(tracker.complete, request.rid, output))

    def _guarded(self, component: str, work: Callable[[], None]) -> None:
        if self._host is not None:
            with self._host.health.guard(component):
                work()

    def _is_open(self, component: str) -> bool:
        return self._host is not None and self._host.health.is_open(component)

    def _close(self) -> None:
        tracker, handover = self._tracker, self._handover
        self._on = False
        if tracker is not None and handover is not None:

            def end() -> None:
                handover.hand_on(all_of_it=True)
                for request_id in tracker.live:
                    tracker.finish(request_id)

            self._guarded(ROWS, end)
        self._close_host()

    def _close_host(self) -> None:
        if self._host is not None:
            with self._host.health.guard("sglang.close"):
                self._host.close()
            self._host = None
