"""Doubles for code that embeds the monitor, and the contract that every tap must keep."""

from __future__ import annotations

from nae_monitor.testing.contract import Adapter, Fault, tap_contract
from nae_monitor.testing.doubles import FakeDecoder, ListSink, ManualClock

__all__ = ["Adapter", "FakeDecoder", "Fault", "ListSink", "ManualClock", "tap_contract"]
