"""Recordings that only who holds the key can read (AES-256-SIV, RFC 5297, of ``cryptography``).

SIV needs no random number: the same rows under the same key are the same bytes, so that a replay
that was broken off still ends as one made at once. What is encrypted is bound to its recording,
file and line, and cannot be moved without notice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from typing import Any, Protocol

from nae_monitor.errors import ConfigurationError, Mark, Problem, RecordingError

KEY_VARIABLE = "NAE_MONITOR_RECORDING_KEY"
KEY_BYTES = 64
ALGORITHM = "AES-256-SIV"
MAKE_A_KEY = f"set {KEY_VARIABLE} to what `openssl rand -hex {KEY_BYTES}` prints"


class Cipher(Protocol):
    """How the bytes of a recording stand on the disk."""

    @property
    def described(self) -> Mapping[str, str] | None:
        """What the manifest says of it; None: nothing is encrypted."""

    def file(self, name: str, data: bytes) -> bytes:
        """A whole file as it is written."""

    def open_file(self, name: str, data: bytes, where: str) -> bytes:
        """The inverse of :meth:`file`; RecordingError names ``where``."""

    def line(self, name: str, number: int, line: str) -> str:
        """A line of a file, counted from 0, as it is written: ASCII without a line break."""

    def open_line(self, name: str, number: int, line: str, where: str) -> str:
        """The inverse of :meth:`line`; RecordingError names ``where``."""


class Plain:
    """Nothing is encrypted. Implements :class:`Cipher`."""

    described = None

    def file(self, name: str, data: bytes) -> bytes:
        """``data``."""
        return data

    def open_file(self, name: str, data: bytes, where: str) -> bytes:
        """``data``."""
        return data

    def line(self, name: str, number: int, line: str) -> str:
        """``line``."""
        return line

    def open_line(self, name: str, number: int, line: str, where: str) -> str:
        """``line``."""
        return line


class AesSiv:
    """Implements :class:`Cipher`.

    Args:
        key: ``KEY_BYTES`` of them.
        recording: names the recording, so that nothing of another one passes for its own.

    Raises:
        ConfigurationError: the package ``cryptography`` is not installed.
    """

    def __init__(self, key: bytes, recording: str) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
        except ImportError as error:
            mend = "pip install 'nae-monitor[encryption]'"
            raise _refused("the package cryptography is not installed", mend) from error
        self._siv = AESSIV(key)
        self._recording = recording.encode("utf-8")
        self.described = {"algorithm": ALGORITHM, "key_id": key_id(key)}

    def file(self, name: str, data: bytes) -> bytes:
        """See :class:`Cipher`."""
        return self._siv.encrypt(data, [self._recording, name.encode("utf-8")])

    def open_file(self, name: str, data: bytes, where: str) -> bytes:
        """See :class:`Cipher`."""
        return self._opened(data, [self._recording, name.encode("utf-8")], where)

    def line(self, name: str, number: int, line: str) -> str:
        """See :class:`Cipher`."""
        place = [self._recording, name.encode("utf-8"), str(number).encode("ascii")]
        return base64.b64encode(self._siv.encrypt(line.encode("utf-8"), place)).decode("ascii")

    def open_line(self, name: str, number: int, line: str, where: str) -> str:
        """See :class:`Cipher`."""
        place = [self._recording, name.encode("utf-8"), str(number).encode("ascii")]
        try:
            data = base64.b64decode(line, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RecordingError(f"{where}: is not an encrypted line") from error
        return self._opened(data, place, where).decode("utf-8")

    def _opened(self, data: bytes, place: list[bytes], where: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return self._siv.decrypt(data, place)
        except (InvalidTag, ValueError) as error:
            message = (
                f"{where}: damaged, moved, or encrypted with another key than its manifest says"
            )
            raise RecordingError(message) from error


PLAIN = Plain()


def key_id(key: bytes) -> str:
    """Names a key without giving it away."""
    return hashlib.sha256(b"nae_monitor recording key id\0" + key).hexdigest()[:16]


def writing_cipher(created_unix_ns: int) -> AesSiv:
    """For a new recording, under the first key.

    Raises:
        ConfigurationError: there is none, or it is no key, or ``cryptography`` is not installed.
    """
    keys = recording_keys()
    if not keys:
        raise _refused("recordings are to be encrypted and there is no key", MAKE_A_KEY)
    return AesSiv(keys[0], str(created_unix_ns))


def reading_cipher(manifest: Mapping[str, Any], where: str) -> Cipher:
    """What reads a recording with this manifest.

    Raises:
        RecordingError: encrypted in a way or with a key that is not known here.
        ConfigurationError: no key at all can be read from the environment.
    """
    told = manifest.get("encryption")
    if told is None:
        return PLAIN
    if not isinstance(told, dict) or told.get("algorithm") != ALGORITHM:
        raise RecordingError(f"{where}: encrypted in a way that this version does not know")
    for key in recording_keys():
        if key_id(key) == told.get("key_id"):
            return AesSiv(key, str(manifest.get("created_unix_ns")))
    wanted = str(told.get("key_id"))[:64]
    raise RecordingError(
        f"{where}: encrypted with the key {wanted}, which {KEY_VARIABLE} does not hold"
    )


def recording_keys() -> list[bytes]:
    """The keys in the environment, hexadecimal behind commas: the first writes, all read.

    Raises:
        ConfigurationError: one of them is no key.
    """
    found = []
    for number, text in enumerate(os.environ.get(KEY_VARIABLE, "").split(","), start=1):
        if not text.strip():
            continue
        try:
            key = bytes.fromhex(text.strip())
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise _refused(f"key {number} is not {2 * KEY_BYTES} hexadecimal digits", MAKE_A_KEY)
        found.append(key)
    return found


def _refused(message: str, mend: str) -> ConfigurationError:
    return ConfigurationError([Problem(Mark(KEY_VARIABLE), message, mend)])
