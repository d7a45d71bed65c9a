"""Directories from the user's model hub, where one is reachable."""

from __future__ import annotations

import re
from pathlib import Path

from nae_monitor.models.cache import model_error

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.yaml", "tokenizer*", "*.model", "*.txt")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form OWNER/NAME."""
    return _HUB_ID.fullmatch(name) is not None


def fetch_from_hub(name: str) -> Path:
    """The local snapshot of a hub repository: safetensors, configuration and tokenizer files only.

    Raises:
        ModelError: the hub is not reachable and no snapshot is cached, or there is no such model.
    """
    from huggingface_hub import errors, snapshot_download

    http_error: type[Exception] = vars(errors)["HTTPError"]  # of the client the hub library uses
    failures = (errors.HFValidationError, http_error, OSError)
    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except failures as error:
        raise model_error(
            name,
            f"could not be fetched from the model hub ({type(error).__name__})",
            "check the name and the network, or name a local directory",
        ) from error
