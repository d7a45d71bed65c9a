"""Wraps transformers' continuous batching, for as long as some model is watched.

transformers builds its manager and batch processor behind ``generate_batch`` and its server, so
their classes are wrapped, not objects. Every wrapper calls the original with the caller's own
arguments; models that are not watched pass through. With the last watch the classes are put back.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from nae_monitor.capture.continuous import ContinuousCapture
from nae_monitor.errors import UnsupportedError

MANAGER_METHODS = ("start", "add_request", "add_requests")
REFUSED = "init_continuous_batching"  # wrapped alone where a method to wrap is missing
PROCESSOR_METHODS = ("prepare_next_batch", "_generation_step", "update_batch", "fail_all_requests")


class Watches:
    """Which models are watched by whom. One for the process: :data:`WATCHES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_model: dict[int, tuple[ContinuousCapture, ...]] = {}
        self._everyone: tuple[ContinuousCapture, ...] = ()
        self._originals: list[tuple[type, str, Any, Any]] = []
        self._batch = threading.local()  # .inputs, .names: of the add_requests under way

    def add(self, model: Any, capture: ContinuousCapture) -> None:
        """Watch a model.

        Where this transformers batches continuously in a way that is not known here, a watched
        model refuses to, with :class:`UnsupportedError`.
        """
        with self._lock:
            if not self._everyone:
                self._wrap()
            self._by_model[id(model)] = (*self._by_model.get(id(model), ()), capture)
            self._everyone = (*self._everyone, capture)

    def remove(self, model: Any, capture: ContinuousCapture) -> None:
        """Stop watching; safe to call twice."""
        with self._lock:
            if capture not in self._everyone:
                return
            left = tuple(c for c in self._by_model[id(model)] if c is not capture)
            if left:
                self._by_model[id(model)] = left
            else:
                del self._by_model[id(model)]
            self._everyone = tuple(c for c in self._everyone if c is not capture)
            if not self._everyone:
                self._unwrap()

    def of(self, model: Any) -> tuple[ContinuousCapture, ...]:
        """Who watches a model."""
        return self._by_model.get(id(model), ())

    def _wrap(self) -> None:
        wrappers: dict[str, Callable[[Any], Any]] = {
            REFUSED: self._refuse,
            "start": self._start,
            "add_request": self._add_request,
            "add_requests": self._add_requests,
            "prepare_next_batch": self._prepare_next_batch,
            "_generation_step": self._generation_step,
            "update_batch": self._update_batch,
            "fail_all_requests": self._fail_all_requests,
        }
        for owner, name in _targets():
            original = owner.__dict__[name]
            wrapper = functools.wraps(original)(wrappers[name](original))
            self._originals.append((owner, name, original, wrapper))
            setattr(owner, name, wrapper)

    def _unwrap(self) -> None:
        for owner, name, original, wrapper in self._originals:
            # If somebody wrapped over us, ours stays inside theirs and passes calls through.
            if owner.__dict__.get(name) is wrapper:
                setattr(owner, name, original)
        self._originals.clear()

    def _refuse(self, original: Any) -> Any:
        def init_continuous_batching(model: Any, *args: Any, **kwargs: Any) -> Any:
            if self.of(model):
                raise UnsupportedError(
                    "this transformers batches continuously in a way that cannot be monitored; "
                    "install transformers 5.23, or detach the monitor"
                )
            return original(model, *args, **kwargs)

        return init_continuous_batching

    def _start(self, original: Any) -> Any:
        def start(manager: Any, *args: Any, **kwargs: Any) -> Any:
            for capture in self.of(manager.model):
                capture.refuse_unsupported(manager)
            return original(manager, *args, **kwargs)

        return start

    def _add_requests(self, original: Any) -> Any:
        def add_requests(manager: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            captures = self.of(manager.model)
            if not captures:
                return original(manager, inputs, *args, **kwargs)
            per_prompt = manager.num_return_sequences
            self._batch.inputs = list(inputs)
            self._batch.names = [(c, c.reserve(len(inputs), per_prompt)) for c in captures]
            try:
                return original(manager, inputs, *args, **kwargs)
            finally:
                self._batch.inputs = self._batch.names = None

        return add_requests

    def _add_request(self, original: Any) -> Any:
        def add_request(
            manager: Any, input_ids: Any, request_id: str | None = None, *args: Any, **kwargs: Any
        ) -> Any:
            captures = self.of(manager.model)
            if captures:
                if request_id is None:  # as the original would, so that it is known beforehand
                    with manager._request_lock:
                        request_id = f"req_{manager._request_counter}"
                        manager._request_counter += 1
                    given = None
                else:
                    given = request_id
                self._name(captures, manager, input_ids, request_id, given)
            return original(manager, input_ids, request_id, *args, **kwargs)

        return add_request

    def _name(
        self,
        captures: tuple[ContinuousCapture, ...],
        manager: Any,
        input_ids: Any,
        own_id: str,
        given: str | None,
    ) -> None:
        per_prompt = manager.num_return_sequences
        inputs = getattr(self._batch, "inputs", None)
        if inputs is None:
            for capture in captures:
                names = capture.named(given, per_prompt)
                if names is not None:
                    capture.name(manager, own_id, per_prompt, names)
            return
        # transformers hands a batch in sorted by content; its lists are still the caller's.
        place = next((i for i, item in enumerate(inputs) if item is input_ids), None)
        if place is None:
            return
        inputs[place] = None
        for capture, reserved in self._batch.names:
            if reserved is not None:
                own = reserved[place * per_prompt : (place + 1) * per_prompt]
                capture.name(manager, own_id, per_prompt, own)

    def _prepare_next_batch(self, original: Any) -> Any:
        def prepare_next_batch(processor: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(processor, *args, **kwargs)
            finally:
                self._reconcile(processor)  # requests that were cancelled are gone

        return prepare_next_batch

    def _generation_step(self, original: Any) -> Any:
        def _generation_step(processor: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            captures = self.of(model)
            for capture in captures:
                capture.begin(processor)
            try:
                return original(processor, model, *args, **kwargs)
            finally:
                for capture in captures:
                    capture.end(processor)

        return _generation_step

    def _update_batch(self, original: Any) -> Any:
        def update_batch(processor: Any, *args: Any, **kwargs: Any) -> Any:
            captures = [c for c in self._everyone if c.knows(processor)]
            batches = [capture.before_update(processor) for capture in captures]
            try:
                return original(processor, *args, **kwargs)
            finally:
                for capture, batch in zip(captures, batches, strict=True):
                    capture.after_update(processor, batch)

        return update_batch

    def _fail_all_requests(self, original: Any) -> Any:
        def fail_all_requests(processor: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(processor, *args, **kwargs)
            finally:
                self._reconcile(processor)

        return fail_all_requests

    def _reconcile(self, processor: Any) -> None:
        for capture in self._everyone:
            if capture.knows(processor):
                capture.reconcile(processor)


WATCHES = Watches()


def _targets() -> list[tuple[type, str]]:
    """Every method to wrap."""
    try:
        from transformers.generation.continuous_batching import continuous_api
    except ImportError:
        return []  # nothing to watch: this transformers has no continuous batching
    wanted = {
        "ContinuousBatchingManager": MANAGER_METHODS,
        "ContinuousBatchProcessor": PROCESSOR_METHODS,
    }
    found, missing = [], []
    for name, methods in wanted.items():
        owner = getattr(continuous_api, name, None)
        for method in methods:
            if owner is None or method not in owner.__dict__:
                missing.append(f"{name}.{method}")
            else:
                found.append((owner, method))
    if missing:
        # Only who batches continuously is refused; `generate` is watched all the same.
        return [(continuous_api.ContinuousMixin, REFUSED)]
    return found
