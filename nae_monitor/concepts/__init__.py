"""Directions for the screen, compiled from rules or learned from labelled rows, and measured."""

from nae_monitor.concepts.build import Backend, Built, Whitening, build
from nae_monitor.concepts.compiled import (
    Ordinary,
    against_chance,
    directions_of,
    only,
    with_ordinary,
)
from nae_monitor.concepts.concept import Concept, concepts_of
from nae_monitor.concepts.evaluate import Measured, evaluate
from nae_monitor.concepts.frames import frames_of, reconstruct_by
from nae_monitor.concepts.recorded import read_recorded
from nae_monitor.concepts.rows import LabelledRows, read_collection

__all__ = [
    "Backend",
    "Built",
    "Concept",
    "LabelledRows",
    "Measured",
    "Ordinary",
    "Whitening",
    "against_chance",
    "build",
    "concepts_of",
    "directions_of",
    "evaluate",
    "frames_of",
    "only",
    "read_collection",
    "read_recorded",
    "reconstruct_by",
    "with_ordinary",
]
