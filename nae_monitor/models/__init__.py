"""Where weights come from: a directory, a model hub, a wheel, or this package itself.

Heavy libraries are imported when they are first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nae_monitor.models.cache import cache_directory
from nae_monitor.models.nla import resolve_nla
from nae_monitor.models.wheels import WheelPin, extract_members, fetch_wheel

if TYPE_CHECKING:
    from nae_monitor.models.encoder import Encoder, load_encoder
    from nae_monitor.models.target import (
        Target,
        load_target,
        load_target_tokenizer,
        resolve_target,
    )

_LAZY = {
    "Encoder": "encoder",
    "load_encoder": "encoder",
    "Target": "target",
    "load_target": "target",
    "load_target_tokenizer": "target",
    "resolve_target": "target",
}

__all__ = [
    "Encoder",
    "Target",
    "WheelPin",
    "cache_directory",
    "extract_members",
    "fetch_wheel",
    "load_encoder",
    "load_target",
    "load_target_tokenizer",
    "resolve_nla",
    "resolve_target",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
