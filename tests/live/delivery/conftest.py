"""Tests of minutes, left out of `make test`: run them with NAE_MONITOR_LIVE=1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

collect_ignore_glob = [] if os.environ.get("NAE_MONITOR_LIVE") else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
