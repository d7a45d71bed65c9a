"""Tests of minutes, left out of `make test`: `make test-live` runs them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "placement"))
sys.path.append(str(Path(__file__).parents[1]))
