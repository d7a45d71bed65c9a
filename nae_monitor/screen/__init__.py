"""Screen: look at every captured row, buy decodes for a few within a budget."""

from nae_monitor.screen.budget import DecodeBudget, Purchase, TokenBucket
from nae_monitor.screen.direction_files import read_directions, write_directions
from nae_monitor.screen.directions import Directions
from nae_monitor.screen.pooling import Pool
from nae_monitor.screen.sampling import (
    BeginningScreen,
    Offers,
    PatientScreen,
    RaisableScreen,
    SamplingScreen,
    Screen,
    SellingScreen,
)
from nae_monitor.screen.scored import ScoredScreen
from nae_monitor.screen.waiting import MAX_PRIORITY, WaitingRows

__all__ = [
    "MAX_PRIORITY",
    "BeginningScreen",
    "DecodeBudget",
    "Directions",
    "Offers",
    "PatientScreen",
    "Pool",
    "Purchase",
    "RaisableScreen",
    "SamplingScreen",
    "ScoredScreen",
    "Screen",
    "SellingScreen",
    "TokenBucket",
    "WaitingRows",
    "read_directions",
    "write_directions",
]
