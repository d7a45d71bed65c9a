"""Replay: recordings through today's decoder and rules, what changed, and the HTML report."""

from nae_monitor.replay.breakdown import RateChange, breakdown
from nae_monitor.replay.compare import Comparison, compare
from nae_monitor.replay.outcome import ReplayRun
from nae_monitor.replay.ports import Conclude, Decoder, Judge, Progress
from nae_monitor.replay.report import write_report
from nae_monitor.replay.run import replay
from nae_monitor.replay.verdicts import cautious_verdict

__all__ = [
    "Comparison",
    "Conclude",
    "Decoder",
    "Judge",
    "Progress",
    "RateChange",
    "ReplayRun",
    "breakdown",
    "cautious_verdict",
    "compare",
    "replay",
    "write_report",
]
