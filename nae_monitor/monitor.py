"""Monitor: wires the stages. The only module that knows them all.

::

    monitor = Monitor.from_yaml("monitor.yaml")
    with monitor.watch(model, tokenizer), monitor.request(request_id="r1"):
        model.generate(**inputs)
    verdict = monitor.verdict("r1", wait_s=5.0)
    monitor.close(deadline_s=10.0)
"""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from nae_monitor.alert import Sinks, build_sinks
from nae_monitor.capture import RequestContext, TransformersTap, request_scope
from nae_monitor.decode import Decoder, load_nla
from nae_monitor.detect import Judge, RuleSet, load_rules
from nae_monitor.errors import CheckpointError, ConfigurationError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.models import load_encoder, resolve_nla, resolve_target
from nae_monitor.pipeline import Observer, Pipeline
from nae_monitor.recording import RecordingWriter
from nae_monitor.records import TraceRef, Verdict
from nae_monitor.screen import SamplingScreen
from nae_monitor.settings import PrivacySettings, Settings
from nae_monitor.token_text import TokenText
from nae_monitor.verdicts import fold_verdicts
from nae_monitor.version import __version__

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """What a monitor, a worker and a replay share: the decoder and the judge."""

    decoder: Decoder
    rules: RuleSet
    judge: Judge


class Monitor:
    """One running monitor. Build it with :meth:`from_yaml`; close it when serving ends."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        sinks: Sinks,
        health: Health,
        observer: Observer | None = None,
    ) -> None:
        self.settings = settings
        self.health = health
        self.recording: Path | None = None
        self._parts = parts
        self._sinks = sinks
        self._observer = observer
        self._recorder: RecordingWriter | None = None
        self._pipeline: Pipeline | None = None

    @classmethod
    def from_yaml(cls, path: Path | str) -> Monitor:
        """Load everything a configuration names.

        Raises:
            ConfigurationError: every problem of the configuration, the rules, the checkpoints
                and the sinks at once.
        """
        return cls.from_settings(Settings.from_yaml(path))

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        console: Console | None = None,
        observer: Observer | None = None,
    ) -> Monitor:
        """As :meth:`from_yaml`, from settings at hand; ``observer`` sees every judged row."""
        health = Health()
        problems: list[Problem] = []
        parts = _collect(problems, lambda: load_parts(settings, health))
        if settings.record.dir is not None:
            _collect(problems, lambda: _check_writable(Path(settings.record.dir or "")))
        sinks = _collect(
            problems,
            lambda: build_sinks(settings.alert, settings.privacy, health, console=console),
        )
        if parts is None or sinks is None or problems:
            if sinks is not None:
                sinks.close(1.0)
            raise ConfigurationError(problems)
        return cls(settings, parts, sinks, health, observer)

    def sibling(self, settings: Settings) -> Monitor:
        """Another monitor over the same decoder and rules, with counters and sinks of its own."""
        health = Health()
        sinks = build_sinks(settings.alert, settings.privacy, health)
        return Monitor(settings, self._parts, sinks, health)

    @contextmanager
    def watch(self, model: Any, tokenizer: Any) -> Iterator[None]:
        """Watch every ``model.generate`` inside the block; nothing is patched outside it.

        Raises:
            CheckpointError: the model's width is not the NLA's.
            UnsupportedError, ConfigurationError: the model cannot be tapped at the NLA's layer.
        """
        self._refuse_other_width(model)
        pipeline = self._start(tokenizer)
        tap = TransformersTap(
            model,
            tokenizer,
            layer=self._parts.decoder.layer,
            settings=self.settings.capture,
            listener=pipeline,
            health=self.health,
            model_name=self.settings.target.model,
        )
        with tap:
            yield

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

    def close(self, deadline_s: float = 10.0) -> bool:
        """Work off what was captured, deliver alerts, close the recording.

        Returns:
            True if nothing was left undone; what was is counted in :attr:`health`.
        """
        end_s = time.monotonic() + deadline_s
        done = self._pipeline.close(deadline_s) if self._pipeline else True
        if self._recorder is not None:
            with self.health.guard("record"):
                self._recorder.close()
        return self._sinks.close(max(0.5, end_s - time.monotonic())) and done

    def sink_stats(self) -> Mapping[str, Mapping[str, int]]:
        """Accepted, delivered and dropped alerts of each sink."""
        return self._sinks.stats()

    def _start(self, tokenizer: Any) -> Pipeline:
        if self._pipeline is None:
            self._recorder = self._open_recording(tokenizer)
            self._pipeline = Pipeline(
                self.settings,
                self.health,
                screen=SamplingScreen(self.settings.screen, seed=self.settings.nla.seed),
                decoder=self._parts.decoder,
                judge=self._parts.judge,
                sinks=self._sinks,
                recorder=self._recorder,
                observer=self._observer,
            )
        self._pipeline.use_tokenizer(TokenText(tokenizer))
        return self._pipeline

    def _open_recording(self, tokenizer: Any) -> RecordingWriter | None:
        if self.settings.record.dir is None:
            return None
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"
        self.recording = Path(self.settings.record.dir) / name
        return RecordingWriter(
            self.recording,
            manifest={
                "model": self.settings.target.model,
                "layer": self._parts.decoder.layer,
                "nla_id": self._parts.decoder.nla_id,
                "rules_sha256": self._parts.rules.fingerprint,
                "special_token_ids": sorted(tokenizer.all_special_ids),
                "nae_monitor": __version__,
            },
            d_model=self._parts.decoder.d_model,
            vector_dtype=self.settings.capture.vector_dtype,
            content=self.settings.privacy.content,
            hmac_key=content_key(self.settings.privacy),
        )

    def _refuse_other_width(self, model: Any) -> None:
        config = model.config.get_text_config()
        width, expected = int(config.hidden_size), self._parts.decoder.d_model
        if width != expected:
            place = Mark(f"nla.av {self.settings.nla.av}")
            mend = "name the NLA pair that was trained for this model"
            message = f"reads vectors of width {expected}, the watched model has {width}"
            raise CheckpointError([Problem(place, message, mend)])


def load_parts(settings: Settings, health: Health) -> Parts:
    """Load the rules, the encoder and the NLA pair, with every problem of the three at once.

    Raises:
        ConfigurationError: what could not be loaded.
    """
    problems: list[Problem] = []
    rules = _collect(problems, lambda: load_rules(settings.detect.rules))
    encoder_name = settings.detect.encoder
    encoder = _collect(problems, lambda: load_encoder(encoder_name)) if encoder_name else None
    nla = settings.nla
    decoder = _collect(
        problems,
        lambda: load_nla(
            resolve_nla(nla.av), resolve_nla(nla.ar), settings=nla, resolve_base=resolve_target
        ),
    )
    if rules is None or decoder is None or problems:
        raise ConfigurationError(problems)
    return Parts(decoder, rules, Judge(rules, encoder, health))


def content_key(privacy: PrivacySettings) -> bytes:
    """The key that content is hashed with; random, and so only good for this process, if unset."""
    key = os.environ.get(privacy.key_env, "")
    return key.encode() if key else secrets.token_bytes(32)


def _collect(problems: list[Problem], load: Callable[[], T]) -> T | None:
    try:
        return load()
    except ConfigurationError as error:
        problems.extend(error.problems or [Problem(Mark("configuration"), str(error))])
        return None


def _check_writable(directory: Path) -> None:
    probe = directory / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        mend = "name a directory this user may write, with free space"
        message = f"recordings cannot be written: {error.strerror}"
        raise ConfigurationError([Problem(Mark(str(directory)), message, mend)]) from error
