"""Screen: look at every captured row, buy decodes for a few within a budget."""

from nae_monitor.screen.budget import DecodeBudget, TokenBucket
from nae_monitor.screen.directions import Directions, read_directions, write_directions
from nae_monitor.screen.sampling import RaisableScreen, SamplingScreen, Screen
from nae_monitor.screen.scored import ScoredScreen

__all__ = [
    "DecodeBudget",
    "Directions",
    "RaisableScreen",
    "SamplingScreen",
    "ScoredScreen",
    "Screen",
    "TokenBucket",
    "read_directions",
    "write_directions",
]
