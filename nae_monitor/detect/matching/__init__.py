"""One compiled matcher for all text selections of a rule set."""

from nae_monitor.detect.matching.compiled import TextAnswerer, TextMatchers, ask_matcher

__all__ = ["TextAnswerer", "TextMatchers", "ask_matcher"]
