"""Which rows are decoded: the screen that the configuration asks for, with its directions."""

from __future__ import annotations

import logging
from pathlib import Path

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.models import resolve_nla
from nae_monitor.screen import Directions, SamplingScreen, ScoredScreen, read_directions
from nae_monitor.screen.directions import CONTRAST_FILE_NAME, FILE_NAME
from nae_monitor.settings import Settings

log = logging.getLogger("nae_monitor")
SHIPPED, NONE = {"rules": FILE_NAME, "contrast": CONTRAST_FILE_NAME}, "none"


def directions_for(settings: Settings, d_model: int, layer: int) -> Directions | None:
    """The directions that the configuration names; None for choice without scores.

    Raises:
        ConfigurationError: they are not there, damaged, or of rows of another width or layer.
    """
    named = settings.screen.directions
    if named == NONE:
        return None
    name = SHIPPED.get(named)
    path = Path(named) if name is None else resolve_nla(settings.nla.ar) / name
    found = read_directions(path)
    if (found.d_model, found.layer) != (d_model, layer):
        is_of = f"is of width {found.d_model} and layer {found.layer}"
        message = f"{is_of}, the NLA of width {d_model} and layer {layer}"
        mend = "make one for this pair with `nae-monitor screen build`"
        raise ConfigurationError([Problem(Mark(str(path)), message, mend)])
    if found.base_model != settings.target.model:
        # The same model has many names; rows of another one would score at random.
        log.warning("screen: %s was made for the model %r", path.name, found.base_model)
    return found


def screen_of(settings: Settings, directions: Directions | None) -> SamplingScreen:
    """The screen; rows that rules raise have a budget only where that is switched on."""
    actions = settings.actions
    raised = actions.raised_decodes_per_s if actions.raise_sampling else 0.0
    seed = settings.nla.seed
    if directions is None:
        return SamplingScreen(settings.screen, seed=seed, raised_decodes_per_s=raised)
    return ScoredScreen(settings.screen, directions, seed=seed, raised_decodes_per_s=raised)
