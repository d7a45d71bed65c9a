"""Screen: look at every captured row, buy decodes for a few within a budget."""

from nae_monitor.screen.budget import DecodeBudget, TokenBucket
from nae_monitor.screen.sampling import RaisableScreen, SamplingScreen, Screen

__all__ = ["DecodeBudget", "RaisableScreen", "SamplingScreen", "Screen", "TokenBucket"]
