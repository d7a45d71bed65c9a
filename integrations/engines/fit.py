"""Whether the NLA pair reads the model that an engine serves."""

from __future__ import annotations

from nae_monitor.decode import open_ar
from nae_monitor.errors import CheckpointError, Mark, Problem
from nae_monitor.models import resolve_nla, resolve_target
from nae_monitor.settings import Settings


def layer_of(settings: Settings) -> tuple[int, int]:
    """Layer and width of the pair, from its sidecar alone."""
    contract = open_ar(resolve_nla(settings.nla.ar), resolve_target).contract
    return contract.layer, contract.d_model


def refuse_other_model(*, d_served: int, blocks: int, layer: int, d_model: int) -> None:
    """Compare the pair with the served model's width and number of blocks.

    Raises:
        CheckpointError: it was trained for another model.
    """
    place, mend = Mark("nla.av"), "name the NLA pair that was trained for this model"
    if d_served != d_model:
        message = f"reads vectors of width {d_model}, the served model has {d_served}"
        raise CheckpointError([Problem(place, message, mend)])
    if not 1 <= layer < blocks:
        message = f"reads layer {layer}, the served model has 1 to {blocks - 1}"
        raise CheckpointError([Problem(place, message, mend)])
