"""Monitor: wires the stages. The only module that knows them all.

::

    monitor = Monitor.from_yaml("monitor.yaml")
    with monitor.watch(model, tokenizer), monitor.request(request_id="r1"):
        model.generate(**inputs)
    verdict = monitor.verdict("r1", wait_s=5.0)
    monitor.close(deadline_s=10.0)
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nae_monitor.alert import Sinks, build_sinks
from nae_monitor.capture import (
    CaptureListener,
    RequestContext,
    Tap,
    TransformersTap,
    request_scope,
    self_test,
)
from nae_monitor.capture.blocks import inner_model
from nae_monitor.errors import (
    CheckpointError,
    ConfigurationError,
    Mark,
    Problem,
    UnsupportedError,
)
from nae_monitor.health import Health
from nae_monitor.live_recording import open_live_recording
from nae_monitor.parts import Parts, check_recording, collect, content_key, load_parts
from nae_monitor.pipeline import Observer, OnDecision, Pipeline
from nae_monitor.pipeline.belt import Belt
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import TraceRef, Verdict
from nae_monitor.screening import screen_of
from nae_monitor.settings import Settings
from nae_monitor.token_text import TokenText
from nae_monitor.verdicts import fold_verdicts

if TYPE_CHECKING:
    from nae_monitor.placement import Outpost

__all__ = ["Monitor", "Parts", "content_key", "load_parts"]

SINKS_SHARE = 0.2  # of a deadline, kept for delivering alerts
EXIT_DEADLINE_S = 2.0  # for a process that ends without closing its monitor


class Monitor:
    """One running monitor. Build it with :meth:`from_yaml`; close it when serving ends."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts | None,
        sinks: Sinks | None,
        health: Health,
        observer: Observer | None = None,
        on_decision: OnDecision | None = None,
        outpost: Outpost | None = None,
    ) -> None:
        """With an ``outpost``, parts and sinks are its workers' and its own."""
        self._on_decision = on_decision
        self.settings = settings
        self.health = health
        self.recording: Path | None = None
        self._parts = parts
        self._sinks = sinks
        self._observer = observer
        self._outpost = outpost
        self._pipeline: Belt | None = outpost
        self._starting = threading.Lock()
        self._watched: set[int] = set()  # ids of models inside a watch block
        self._tested: weakref.WeakSet[Any] = weakref.WeakSet()
        self._closed = False

    @classmethod
    def from_yaml(cls, path: Path | str, *, on_decision: OnDecision | None = None) -> Monitor:
        """Load everything a configuration names.

        ``on_decision`` is told every action that a rule asks for, and whether it was carried out;
        what it returns of a stop says whether the host ended the generation.

        Raises:
            ConfigurationError: every problem of the configuration, the rules, the checkpoints
                and the sinks at once.
        """
        return cls.from_settings(Settings.from_yaml(path), on_decision=on_decision)

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        console: Console | None = None,
        observer: Observer | None = None,
        on_decision: OnDecision | None = None,
    ) -> Monitor:
        """As :meth:`from_yaml`, from settings at hand.

        ``observer`` sees every judged row, ``on_decision`` every action that a rule asks for;
        both only where this process decodes (placement ``inline``).
        """
        health = Health()
        if settings.capture.placement != "inline":
            return cls._outside(settings, health, console, observer or on_decision)
        problems: list[Problem] = []
        parts = collect(problems, lambda: load_parts(settings, health))
        if settings.record.dir is not None:
            collect(problems, lambda: check_recording(settings.record))
        sinks = collect(
            problems,
            lambda: build_sinks(settings.alert, settings.privacy, health, console=console),
        )
        if parts is None or sinks is None or problems:
            if sinks is not None:
                sinks.close(1.0)
            raise ConfigurationError(problems)
        return cls(settings, parts, sinks, health, observer, on_decision)

    @classmethod
    def _outside(
        cls, settings: Settings, health: Health, console: Console | None, callback: object
    ) -> Monitor:
        """The monitor of a process whose rows are decoded by workers."""
        if callback is not None:
            place = Mark(f"capture.placement {settings.capture.placement}")
            mend = "poll should_stop and verdict, or set the placement to inline"
            message = "observer and on_decision hear nothing of what workers do"
            raise ConfigurationError([Problem(place, message, mend)])
        from nae_monitor.placement import open_outpost

        outpost = open_outpost(settings, health, console=console)
        atexit.register(outpost.close, EXIT_DEADLINE_S)
        return cls(settings, None, None, health, outpost=outpost)

    def sibling(self, settings: Settings) -> Monitor:
        """Another monitor over the same decoder and rules, with counters and sinks of its own.

        Raises:
            UnsupportedError: this one's decoder and rules are in other processes.
        """
        health = Health()
        parts = self._own_parts()
        return Monitor(
            settings, parts, build_sinks(settings.alert, settings.privacy, health), health
        )

    @contextmanager
    def watch(self, model: Any, tokenizer: Any) -> Iterator[None]:
        """Watch every ``model.generate`` inside the block; nothing is patched outside it.

        The first time a model is watched a few tokens are generated, to see that what is
        captured is what the model computes. Several models may be watched, at once or in turn.

        Raises:
            CheckpointError: the model's width is not the NLA's.
            UnsupportedError: the model cannot be tapped at the NLA's layer, its rows are not its
                hidden states, it is being watched already, or this monitor is closed.
            ConfigurationError: the layer is out of range, or the recording cannot be written.
        """
        inner = inner_model(model)
        self._refuse_other_width(inner)
        with self._starting:
            if id(inner) in self._watched:  # each row would count twice
                raise UnsupportedError("this monitor is watching the model already")
            self._watched.add(id(inner))
        try:
            with self._tap(model, tokenizer):
                yield
        finally:
            self._watched.discard(id(inner))

    @property
    def layer(self) -> int:
        """K: the NLA pair reads ``hidden_states[K]``."""
        return (self._outpost or self._own_parts().decoder).layer

    @property
    def d_model(self) -> int:
        """Width of the vectors that the NLA pair reads."""
        return (self._outpost or self._own_parts().decoder).d_model

    def listener(self, tokenizer: Any) -> CaptureListener:
        """For the tap of another server, which tests itself: what to tell of its rows.

        Raises:
            UnsupportedError: this monitor is closed.
            ConfigurationError: the recording cannot be written.
        """
        return self._started(tokenizer).listener(TokenText(tokenizer))

    def tap(self, tokenizer: Any) -> Tap:
        """A tap for a decode loop of your own, in any Python stack; see ``Tap``.

        Nothing checks such a loop's rows: hold it to ``nae_monitor.testing.tap_contract``. Rules
        that end a generation are told by ``on_decision`` and :meth:`should_stop`.

        Raises:
            UnsupportedError: this monitor is closed.
            ConfigurationError: the recording cannot be written.
        """
        return Tap(
            layer=self.layer,
            settings=self.settings.capture,
            listener=self.listener(tokenizer),
            health=self.health,
            model_name=self.settings.target.model,
        )

    def request(
        self,
        request_id: str | Sequence[str] | None = None,
        *,
        session_id: str | None = None,
        tenant: str | None = None,
        trace: TraceRef | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[RequestContext]:
        """Name the generations of this thread; see :func:`nae_monitor.capture.request_scope`."""
        return request_scope(request_id, session_id, tenant, trace, attributes)

    def verdict(self, request_id: str, wait_s: float = 5.0) -> Verdict:
        """What is known of a request; undecided where it is unknown or not finished in time."""
        found = self._pipeline.verdict(request_id, wait_s) if self._pipeline else []
        return fold_verdicts(request_id, found)

    def should_stop(self, request_id: str) -> bool:
        """Whether a rule has asked to end this sequence now, and may; for servers that poll.

        Never waits. ``request_id`` is the sequence's own, ``r#1`` in a batch ``r``. Generations
        under :meth:`watch` end by themselves; ``on_decision`` is the way to be called instead.
        """
        return self._pipeline is not None and self._pipeline.brake.should_stop(request_id)

    def confirm_stop(self, request_id: str, *, ended: bool) -> bool:
        """For a host that ends generations itself: say what came of an ordered stop.

        Alerts, counters and the recording then tell ``blocked`` or ``refused``; without a word,
        ``unknown``. Never waits. ``request_id`` is the sequence's own, as for :meth:`should_stop`.

        Returns:
            False where no stop waits for an answer, as after the request's alerts went out.
        """
        pipeline = self._pipeline
        return pipeline is not None and pipeline.brake.confirm(request_id, ended=ended)

    def close(self, deadline_s: float = 10.0) -> bool:
        """Work off what was captured, deliver alerts, close the recording.

        Returns:
            True if nothing was left undone; what was is counted in :attr:`health`.
        """
        end_s = time.monotonic() + deadline_s
        with self._starting:
            self._closed = True
        if self._outpost is not None:
            atexit.unregister(self._outpost.close)
            return self._outpost.close(deadline_s)
        parts = self._own_parts()
        if self._pipeline is not None and parts.live is not None:
            parts.live.stop()
        done = True
        if self._pipeline is not None:
            done = self._pipeline.close(deadline_s * (1 - SINKS_SHARE))
        left_s = max(SINKS_SHARE * deadline_s, end_s - time.monotonic())
        delivered = self._sinks is None or self._sinks.close(left_s)
        atexit.unregister(self._close_at_exit)
        return delivered and done

    def sink_stats(self) -> Mapping[str, Mapping[str, int]]:
        """Accepted, delivered and dropped alerts of each sink."""
        if self._outpost is not None:
            return self._outpost.sink_stats()
        return self._sinks.stats() if self._sinks is not None else {}

    def _tap(self, model: Any, tokenizer: Any) -> TransformersTap:
        inner = inner_model(model)
        pipeline = self._started(tokenizer)
        listener = pipeline.listener(TokenText(tokenizer))
        if inner not in self._tested:
            self_test(model, tokenizer, layer=self.layer)
            self._tested.add(inner)
        return TransformersTap(
            model,
            tokenizer,
            layer=self.layer,
            settings=self.settings.capture,
            listener=listener,
            health=self.health,
            model_name=self.settings.target.model,
            stopping=pipeline.brake if pipeline.brake.enforces else None,
        )

    def _own_parts(self) -> Parts:
        if self._parts is None:
            raise UnsupportedError("this monitor's decoder and rules are in worker processes")
        return self._parts

    def _started(self, tokenizer: Any) -> Belt:
        with self._starting:
            if self._closed:
                raise UnsupportedError("this monitor is closed; make another to watch a model")
            if self._pipeline is None:
                parts, sinks = self._own_parts(), self._sinks
                if sinks is None:
                    raise UnsupportedError("this monitor has no sinks")
                recorded = self.settings.record.dir is not None
                special = sorted(tokenizer.all_special_ids) if recorded else []
                self._pipeline = Pipeline(
                    self.settings,
                    self.health,
                    screen=screen_of(self.settings, parts.directions),
                    decoder=parts.decoder,
                    support=parts.support,
                    judge=parts.live or parts.judge,
                    rules=parts.rules_in_force,
                    on_decision=self._on_decision,
                    sinks=sinks,
                    open_recorder=(lambda: self._open_recording(special)) if recorded else None,
                    observer=self._observer,
                )
                if parts.live is not None and self.settings.detect.reload_s is not None:
                    parts.live.start(self.settings.detect.reload_s)
                atexit.register(self._close_at_exit)
            return self._pipeline

    def _close_at_exit(self) -> None:
        self.close(EXIT_DEADLINE_S)

    def _open_recording(self, special_token_ids: list[int]) -> RecordingWriter:
        writer = open_live_recording(self.settings, self._own_parts(), special_token_ids)
        self.recording = writer.directory
        return writer

    def _refuse_other_width(self, model: Any) -> None:
        expected = self.d_model
        config: Any = getattr(model, "config", None)
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()
        width = getattr(config, "hidden_size", None)
        if width is not None and width != expected:  # a model without a width is refused below
            place = Mark(f"nla.av {self.settings.nla.av}")
            mend = "name the NLA pair that was trained for this model"
            message = f"reads vectors of width {expected}, the watched model has {width}"
            raise CheckpointError([Problem(place, message, mend)])
