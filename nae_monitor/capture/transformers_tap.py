"""The tap on a transformers model: hooks, the watch over ``generate``, and the host boundary."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch

from nae_monitor.capture.blocks import decoder_block, inner_model
from nae_monitor.capture.context import current_context
from nae_monitor.capture.continuous import ContinuousCapture
from nae_monitor.capture.continuous_patch import WATCHES
from nae_monitor.capture.generation import Generation
from nae_monitor.capture.listener import CaptureListener, Stopping
from nae_monitor.capture.options import GenerateOptions, read_options
from nae_monitor.capture.sink import Sink
from nae_monitor.capture.stopping import COMPONENT, StopCriterion, with_criterion
from nae_monitor.errors import UnsupportedError
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings

log = logging.getLogger("nae_monitor")

_UNMAPPED = object()  # a watched generation that cannot or may not be mapped to rows


class TransformersTap:
    """Captures the residual stream behind block ``layer - 1`` while ``model.generate`` runs.

    Continuous batching (``generate_batch``, ``transformers serve --continuous-batching``) is
    captured too, request by request.

    Rows equal ``hidden_states[layer]`` of an ordinary forward pass. Works under any number of
    generating threads. Between :meth:`attach` and :meth:`detach` a call that cannot be mapped to
    rows (beam search, assisted generation, …) raises :class:`UnsupportedError` before it begins;
    nothing else of ours ever reaches the caller of ``generate``. Forward passes outside
    ``generate`` are counted, not captured.

    Args:
        model: a transformers causal language model; PEFT and ``torch.compile`` wrappers are seen
            through.
        tokenizer: its tokenizer.
        layer: K, from 1.
        settings: phases and the first position wanted.
        listener: is told everything, on the generating thread.
        health: counts ``tokens.seen``, ``tokens.excluded``, ``tokens.cached``, ``dropped.*`` and
            ``blind.no_rows`` or ``blind.some_rows`` (a compiled model that hooks do not reach).
        model_name: goes into every request.
        stopping: may end sequences; None: `generate` is called with the caller's own arguments.

    Raises:
        UnsupportedError: the model's blocks cannot be found.
        ConfigurationError: ``layer`` is out of range.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        layer: int,
        settings: CaptureSettings,
        listener: CaptureListener,
        health: Health,
        model_name: str,
        stopping: Stopping | None = None,
    ) -> None:
        self._model = inner_model(model)
        self._block = decoder_block(self._model, layer)
        self.tokenizer = tokenizer
        self.layer = layer
        device = next(self._block.parameters()).device
        if device.type == "meta":  # offloaded weights: where the rows will be shows at run time
            device = torch.device("cpu")
        self._sink = Sink(listener, health, settings, layer, model_name, device)
        self._health = health
        self._stopping = stopping
        self._lock = threading.Lock()
        self._attached = False
        self._handles: list[Any] = []
        self._wrapper: Any = None
        self._replaced: Any = None  # what stood in the instance's dictionary before
        self._local = threading.local()  # .generation: under way in this thread, or _UNMAPPED
        self._told_blind = False
        self._continuous: ContinuousCapture | None = None

    def attach(self) -> TransformersTap:
        """Set the hooks and watch ``generate``; a second call changes nothing."""
        with self._lock:
            if self._attached:
                return self
            try:
                self._attached = True
                self._set_hooks()
                self._replaced = self._model.__dict__.get("generate")
                self._wrapper = self._watch(self._model.generate)
                self._model.generate = self._wrapper
                if hasattr(self._model, "init_continuous_batching"):
                    self._continuous = ContinuousCapture(self._sink, self._stopping)
                    WATCHES.add(self._model, self._continuous)
            except BaseException:
                self._remove()
                raise
        return self

    def detach(self) -> None:
        """Remove every hook and patch; safe to call twice, and while a generation runs."""
        with self._lock:
            self._remove()

    def __enter__(self) -> TransformersTap:
        return self.attach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def _set_hooks(self) -> None:
        before, after = _untraced(self._before_forward), _untraced(self._after_block)
        self._handles.append(self._model.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(self._block.register_forward_hook(after))

    def _remove(self) -> None:
        self._attached = False
        while self._handles:
            self._handles.pop().remove()
        # If somebody wrapped `generate` over us, ours stays inside theirs and passes calls through.
        if self._wrapper is not None and self._model.__dict__.get("generate") is self._wrapper:
            del self._model.generate
            if self._replaced is not None:
                self._model.generate = self._replaced
        self._wrapper = self._replaced = None
        if self._continuous is not None:
            WATCHES.remove(self._model, self._continuous)
            self._continuous.close()
            self._continuous = None

    def _watch(self, original: Any) -> Any:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if not self._attached:
                return original(*args, **kwargs)
            options: GenerateOptions | None = None
            arguments: Mapping[str, Any] = {}
            with self._health.guard("capture.options"):
                arguments = _by_name(signature, args, kwargs)
                options = read_options(self._model, arguments)
            if options is not None and options.refusal is not None:
                raise UnsupportedError(options.refusal)
            outer = getattr(self._local, "generation", None)
            generation = self._begin(arguments, options)
            self._local.generation = generation or _UNMAPPED
            if generation is not None and options is not None:
                args, kwargs = self._stoppable(signature, args, kwargs, generation, options)
            try:
                output = original(*args, **kwargs)
                self._complete(generation, output)
                return output
            finally:
                self._local.generation = outer
                self._finish(generation)

        return generate

    def _begin(
        self, arguments: Mapping[str, Any], options: GenerateOptions | None
    ) -> Generation | None:
        generation = None
        if options is None or self._sink.quiet:
            return None
        with self._health.guard("capture.start"):
            generation = Generation(
                self._sink,
                current_context(),
                arguments,
                options,
                at_once=self._stopping is not None,  # a stop counts the tokens behind a row
            )
            if not generation.start():
                self._finish(generation)
                generation = None
        return generation

    def _stoppable(
        self,
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        generation: Generation,
        options: GenerateOptions,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with our criterion; as they were where it cannot work."""
        if self._stopping is None:
            return args, kwargs
        if options.pad_token_id is None and len(generation.requests) > 1:
            # Without padding an ended sequence would go on beside the others.
            self._health.count("actions.stop_generation.impossible", len(generation.requests))
            return args, kwargs
        with self._health.guard(COMPONENT):
            pad = options.pad_token_id
            criterion = StopCriterion(generation, self._stopping, self._health, pad)
            args, kwargs = with_criterion(signature, args, kwargs, criterion)
        return args, kwargs

    def _complete(self, generation: Generation | None, output: Any) -> None:
        with self._health.guard("capture.end"):
            if generation is not None:
                blind = generation.complete(output)
                if blind is not None:
                    self._tell_blind(blind)
            else:
                tokens = output if isinstance(output, torch.Tensor) else output.sequences
                reason = "circuit_open" if self._sink.quiet else "not_mapped"
                self._health.count(f"dropped.{reason}", tokens.numel())

    def _finish(self, generation: Generation | None) -> None:
        if generation is None:
            return
        with self._health.guard("capture.end"):
            generation.finish()

    def _tell_blind(self, counter: str) -> None:
        self._health.count(counter)
        if not self._told_blind:
            self._told_blind = True
            log.error(
                "the model ran and its block %d was not seen (%s): is it compiled? "
                "Attach before the first compiled call, or do not compile",
                self.layer - 1,
                counter,
            )

    def _before_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        generation = getattr(self._local, "generation", None)
        if generation is _UNMAPPED:
            return
        continuous = self._continuous
        if generation is None and continuous is not None and continuous.running_here():
            with self._health.guard("capture.pass"):
                continuous.before_pass(kwargs.get("input_ids"), kwargs.get("position_ids"))
            return
        with self._health.guard("capture.pass"):
            ids = kwargs.get("input_ids", args[0] if args else None)
            if isinstance(generation, Generation):
                generation.before_pass(ids, kwargs.get("past_key_values"))
            else:
                shape = kwargs["inputs_embeds"].shape[:-1] if ids is None else ids.shape
                self._health.count("dropped.outside_generate", shape.numel())

    def _after_block(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        generation = getattr(self._local, "generation", None)
        if isinstance(generation, Generation):
            with self._health.guard("capture.block"):
                generation.after_block(output)
        elif generation is None:
            continuous = self._continuous
            if continuous is not None and continuous.running_here():
                with self._health.guard("capture.block"):
                    continuous.after_block(output)


def _untraced(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that runs as it stands under torch.compile too: traced, it would be frozen.

    Elsewhere it is called directly, since leaving the compiler costs as much as a kernel launch.
    """
    outside: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]

    @functools.wraps(hook)
    def called(*arguments: Any) -> None:
        if torch.compiler.is_compiling():
            outside(*arguments)
        else:
            hook(*arguments)

    return called


def _by_name(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Every argument of a call by its name, ``**kwargs`` merged in."""
    arguments: dict[str, Any] = dict(signature.bind(*args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    return arguments
