"""Doubles of vLLM for the tests of its plugin; the real engine is under tests/live/vllm."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
