"""The decoder and the judge as a configuration names them, loaded with every problem at once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nae_monitor.decode import Decoder, load_nla
from nae_monitor.detect import Judge, RuleSet, load_rules
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.models import load_encoder, resolve_nla, resolve_target
from nae_monitor.settings import PrivacySettings, Settings

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
    nla = settings.nla
    decoder = collect(
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


def collect(problems: list[Problem], load: Callable[[], T]) -> T | None:
    """What ``load`` returns; None, and its problems added to ``problems``, where it raises."""
    try:
        return load()
    except ConfigurationError as error:
        problems.extend(error.problems or [Problem(Mark("configuration"), str(error))])
        return None
