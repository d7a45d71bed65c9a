"""The recording of what is watched now."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from nae_monitor.parts import Parts, content_key
from nae_monitor.recording import RecordingWriter
from nae_monitor.settings import Settings
from nae_monitor.version import __version__


def open_live_recording(
    settings: Settings, parts: Parts, special_token_ids: Sequence[int]
) -> RecordingWriter:
    """A recording of its own name under ``record.dir``.

    Raises:
        ConfigurationError: it cannot be written there.
    """
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    return RecordingWriter(
        Path(settings.record.dir or "") / name,
        manifest={
            "model": settings.target.model,
            "layer": parts.decoder.layer,
            "nla_id": parts.decoder.nla_id,
            "nla_weights": parts.nla_weights,
            "rules_sha256": parts.rules_in_force().fingerprint,
            "keep": settings.record.keep,
            "special_token_ids": list(special_token_ids),
            "nae_monitor": __version__,
        },
        d_model=parts.decoder.d_model,
        vector_dtype=settings.capture.vector_dtype,
        content=settings.privacy.content,
        hmac_key=content_key(settings.privacy),
        encrypted=settings.record.encrypt,
    )
