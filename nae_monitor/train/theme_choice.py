"""Which of the twenty kinds a theme speaks of, as a sentence encoder reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nae_monitor.decode.form import parts_of
from nae_monitor.models.encoder import Encoder
from nae_monitor.train.targets import Target
from nae_monitor.train.themes import KINDS, UNCLEAR


def theme_in(text: str) -> str:
    """The theme of an explanation, without its quotations; empty where it names none."""
    found = parts_of(text)
    return found.theme if found else ""


def with_theme(text: str, theme: str) -> str:
    """The explanation with another theme; itself where it names none."""
    found = parts_of(text)
    if found is None or not found.theme:
        return text
    start = found.theme_start
    return text[:start] + theme + text[start + len(found.theme) :]


def chosen_kinds(encoder: Encoder, themes: Sequence[str]) -> list[str]:
    """The kind [n] whose description is nearest to each theme; none for an empty theme."""
    keys = list(KINDS)
    described = encoder.encode([f"{kind.label}: {kind.description}" for kind in KINDS.values()])
    nearest = (encoder.encode(themes) @ described.T).argmax(1)
    return [keys[i] if theme else "" for i, theme in zip(nearest, themes, strict=True)]


def kind_right(encoder: Encoder, targets: Sequence[Target], texts: Sequence[str]) -> np.ndarray:
    """1 where the text's theme is nearest to the target's own kind [n]."""
    chosen = chosen_kinds(encoder, [theme_in(text) for text in texts])
    return np.array([float(c == t.kind) for c, t in zip(chosen, targets, strict=True)])


def unclear_said(texts: Sequence[str]) -> np.ndarray:
    """1 where the text says that the topic is not clear yet [n]."""
    return np.array([float(theme_in(text) == UNCLEAR) for text in texts])
