"""The decoder and the judge as a configuration names them, loaded with every problem at once."""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nae_monitor.calibration import calibration_for, warn_of_unknown_percentiles
from nae_monitor.decode import Decoder, Nla, load_nla, open_ar, open_av
from nae_monitor.decode.support import SupportCalibration
from nae_monitor.detect import Calibration, Judge, LiveRules, RuleSet, load_rules
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.models import load_encoder, resolve_nla, resolve_target
from nae_monitor.recording.encryption import writing_cipher
from nae_monitor.screen import Directions
from nae_monitor.screening import directions_for
from nae_monitor.settings import NlaSettings, PrivacySettings, RecordSettings, Settings

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """What a monitor, a worker and a replay share: the decoder and the judge."""

    decoder: Decoder
    rules: RuleSet  # as loaded at the start
    judge: Judge
    live: LiveRules | None = None  # the rules in force, where they are read again
    directions: Directions | None = None  # that every row is scored against
    support: SupportCalibration | None = None  # of the pair; None: P(unsupported) is unknown
    nla_weights: str | None = None  # precision that texts are written in; None: a server's own

    def rules_in_force(self) -> RuleSet:
        """The rules to judge by now."""
        return self.rules if self.live is None else self.live.rules


def load_parts(settings: Settings, health: Health) -> Parts:
    """Load the rules, the encoder and the NLA pair, with every problem of the three at once.

    Raises:
        ConfigurationError: what could not be loaded.
    """
    problems: list[Problem] = []
    calibration: Calibration | None = None
    directions: Directions | None = None
    rules = collect(problems, lambda: load_rules(settings.detect.rules))
    encoder_name = settings.detect.encoder
    model = settings.target.model
    encoder = collect(problems, lambda: load_encoder(encoder_name)) if encoder_name else None
    decoder = _load_decoder(settings.nla, problems)
    if rules is not None and decoder is not None:
        layer = decoder.layer
        problems += rules.unfit_for(model, layer)
        calibration = collect(problems, lambda: calibration_for(settings, decoder.nla_id))
        directions = collect(problems, lambda: directions_for(settings, decoder.d_model, layer))
    if rules is None or decoder is None or problems:
        raise ConfigurationError(problems)
    warn_of_unknown_percentiles(rules, calibration)
    health.gauge("decode.general_path", int(decoder.verbalizer.general_because is not None))
    live: LiveRules | None = None
    if settings.detect.reload_s is not None:

        def accept(changed: RuleSet) -> None:
            unfit = changed.unfit_for(model, layer)
            if unfit:
                raise ConfigurationError(unfit)

        live = LiveRules(
            settings.detect.rules,
            encoder,
            health,
            accept=accept,
            calibration=calibration,
            reconstructor=decoder,
        )
    judge = Judge(rules, encoder, health, calibration=calibration, reconstructor=decoder)
    weights = decoder.verbalizer.weights
    return Parts(decoder, rules, judge, live, directions, decoder.support, weights)


def _load_decoder(nla: NlaSettings, problems: list[Problem]) -> Nla | None:
    """The pair; where one directory is not there, the other is still checked."""
    av = collect(problems, lambda: resolve_nla(nla.av))
    ar = collect(problems, lambda: resolve_nla(nla.ar))
    if av is not None and ar is not None:
        return collect(
            problems, lambda: load_nla(av, ar, settings=nla, resolve_base=resolve_target)
        )
    if av is not None:
        collect(problems, lambda: open_av(av, resolve_target))
    if ar is not None:
        collect(problems, lambda: open_ar(ar, resolve_target))
    return None


def content_key(privacy: PrivacySettings) -> bytes:
    """The key that content is hashed with; random, and so only good for this process, if unset."""
    key = os.environ.get(privacy.key_env, "")
    return key.encode() if key else secrets.token_bytes(32)


def collect(problems: list[Problem], load: Callable[[], T]) -> T | None:
    """What ``load`` returns; None, and its problems added to ``problems``, where it raises."""
    try:
        return load()
    except ConfigurationError as error:
        problems.extend(error.problems or [Problem(Mark("configuration"), str(error))])
        return None


def check_recording(settings: RecordSettings) -> None:
    """Try to write where recordings go, and to encrypt; ConfigurationError where that fails."""
    if settings.encrypt:
        writing_cipher(0)
    directory = Path(settings.dir or "")
    probe = directory / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        mend = "name a directory this user may write, with free space"
        message = f"recordings cannot be written: {error.strerror}"
        raise ConfigurationError([Problem(Mark(str(directory)), message, mend)]) from error
