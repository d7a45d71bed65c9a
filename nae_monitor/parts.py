"""The decoder and the judge as a configuration names them, loaded with every problem at once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nae_monitor.decode import Decoder, load_nla, open_ar, open_av
from nae_monitor.detect import Judge, RuleSet, load_rules
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.models import load_encoder, resolve_nla, resolve_target
from nae_monitor.settings import NlaSettings, PrivacySettings, Settings

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """What a monitor, a worker and a replay share: the decoder and the judge."""

    decoder: Decoder
    rules: RuleSet
    judge: Judge


def load_parts(settings: Settings, health: Health) -> Parts:
    """Load the rules, the encoder and the NLA pair, with every problem of the three at once.

    Raises:
        ConfigurationError: what could not be loaded.
    """
    problems: list[Problem] = []
    rules = collect(problems, lambda: load_rules(settings.detect.rules))
    encoder_name = settings.detect.encoder
    encoder = collect(problems, lambda: load_encoder(encoder_name)) if encoder_name else None
    decoder = _load_decoder(settings.nla, problems)
    if rules is None or decoder is None or problems:
        raise ConfigurationError(problems)
    return Parts(decoder, rules, Judge(rules, encoder, health))


def _load_decoder(nla: NlaSettings, problems: list[Problem]) -> Decoder | None:
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
