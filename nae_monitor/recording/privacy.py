"""What of prompts, outputs and decoded text reaches the disk."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Literal

from nae_monitor.errors import ConfigurationError, Mark, Problem

Content = Literal["full", "hash", "none"]


def encodable(text: str) -> str:
    """``text`` with lone surrogates, which UTF-8 cannot hold, as U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class ContentFilter:
    """Turns text into what the content setting lets through.

    ``full`` keeps text, ``none`` gives None, ``hash`` the HMAC-SHA256 in hex. Whole texts hash
    alone, so equal texts can be told apart from others by who holds the key. Single tokens hash
    with their request and position: a bare per-token hash would be a substitution cipher.

    Raises:
        ConfigurationError: content ``hash`` without a key.
    """

    def __init__(self, content: Content, hmac_key: bytes | None) -> None:
        if content == "hash" and not hmac_key:
            problem = Problem(
                Mark("privacy"),
                "content is 'hash' but there is no key",
                "set the environment variable that key_env names, or use content: none",
            )
            raise ConfigurationError([problem])
        self.content = content
        self._key = hmac_key or b""

    @property
    def key_id(self) -> str | None:
        """Names the key without giving it away; None unless hashing."""
        return self._hash("nae_monitor key id")[:16] if self.content == "hash" else None

    def _hash(self, text: str) -> str:
        return hmac.digest(self._key, text.encode("utf-8"), "sha256").hex()

    def text(self, text: str | None) -> str | None:
        """A whole text: prompt, output, explanation, matched span."""
        if text is None or self.content == "none":
            return None
        clean = encodable(text)
        return clean if self.content == "full" else self._hash(clean)

    def token(self, text: str, request_id: str, position: int) -> str | None:
        """The text of one token."""
        if self.content == "hash":
            return self._hash(f"{request_id}\0{position}\0{encodable(text)}")
        return self.text(text)

    def tokens(self, texts: Sequence[str] | None) -> list[str] | None:
        """Token texts of a request: only ever whole, since they would spell the text out."""
        if texts is None or self.content != "full":
            return None
        return [encodable(text) for text in texts]

    def token_ids(self, ids: Sequence[int] | None) -> list[int] | None:
        """Token ids: they are the text, so only ``full`` keeps them."""
        return None if ids is None or self.content != "full" else list(ids)

    def attributes(self, attributes: Mapping[str, str]) -> list[tuple[str, str]]:
        """Caller-given request fields, which may hold anything: kept by ``full`` only."""
        if self.content != "full":
            return []
        return [(encodable(key), encodable(value)) for key, value in attributes.items()]
