"""A tap on a serving model: rows of (request, position, token, vector) from its residual stream."""

from __future__ import annotations

from nae_monitor.capture.context import RequestContext, current_context, request_scope
from nae_monitor.capture.listener import CaptureListener, Stopping
from nae_monitor.capture.self_test import self_test
from nae_monitor.capture.tap import Tap
from nae_monitor.capture.transformers_tap import TransformersTap

__all__ = [
    "CaptureListener",
    "RequestContext",
    "Stopping",
    "Tap",
    "TransformersTap",
    "current_context",
    "request_scope",
    "self_test",
]
