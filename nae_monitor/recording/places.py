"""Where recordings are read from: local paths, and whatever fsspec opens (``s3://bucket/run``)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from nae_monitor.errors import ConfigurationError, Mark, Problem


def located(path: Path | str) -> Path:
    """A path as given, or a URL as something that reads like a path.

    Raises:
        ConfigurationError: a URL, and what opens URLs is not installed.
    """
    text = str(path)
    if "://" not in text:
        return Path(path)
    try:
        from upath import UPath

        return cast(Path, UPath(text))
    except (ImportError, ValueError) as error:
        mend = "pip install 'nae-monitor[remote]' and the fsspec package of that protocol"
        raise ConfigurationError(
            [Problem(Mark(text), f"cannot be opened: {error}", mend)]
        ) from None
