"""One message between a serving process and a worker: fixed prefix, JSON header, raw body.

All integers are little-endian::

    offset  bytes
         0      4  magic, "NAEF"
         4      1  protocol version
         5      1  kind (:class:`Kind`)
         6      2  zero
         8      4  sequence number on this link and in this direction, from 0, wrapping
        12      4  h, length of the header in bytes, at most MAX_HEADER_BYTES
        16      4  b, length of the body in bytes, at most MAX_BODY_BYTES
        20      h  header: one JSON object in UTF-8
      20+h      b  body: token ids (int32) and vectors (float16 or float32), as the header says

The first five bytes keep their meaning in every protocol version, so that two of different
versions can tell each other so. JSON, because its reader is in the standard library, builds nothing
but plain values, and can be read by people and by Kafka tools; what is large, token ids and
vectors, is not in it. Nothing is allocated by what a length field claims: a frame whose lengths do
not add up to the bytes at hand is refused first.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from nae_monitor.errors import InputDataError

MAGIC = b"NAEF"
VERSION = 1
MAX_HEADER_BYTES = 1024 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
PREFIX = struct.Struct("<4sBBHIII")
MAX_FRAME_BYTES = PREFIX.size + MAX_HEADER_BYTES + MAX_BODY_BYTES
SEQUENCE_MODULUS = 2**32


class Kind(IntEnum):
    """What a frame says; S: by the serving process, W: by the worker."""

    HELLO = 1  # S: who it is and what it captures
    WELCOME = 2  # W: who it is and what it reads
    REFUSED = 3  # W: no, and why
    BEAT = 4  # S, W: still there
    BYE = 5  # S, W: an orderly end
    STRANGER = 6  # W: greet me first
    BEGIN = 7  # S: a turn begins
    ROWS = 8  # S: chosen rows, and the output so far
    END = 9  # S: a turn is over, with its ledger
    OUTCOME = 10  # W: what was found in a turn, and what was lost
    STOP = 11  # W: end this generation
    RAISE = 12  # W: look closer at what follows


class FrameError(InputDataError):
    """Bytes that are not a frame, or a frame that does not hold what its kind asks for."""


class VersionError(FrameError):
    """A frame of another protocol version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"protocol version {version}, this process speaks {VERSION}")
        self.version = version


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that is well formed; its header is a JSON object, its contents are not checked."""

    kind: Kind
    sequence: int
    header: dict[str, Any]
    body: memoryview


def pack(
    kind: Kind,
    header: dict[str, Any],
    body: bytes = b"",
    *,
    sequence: int = 0,
    version: int = VERSION,
) -> bytes:
    """The bytes of a frame.

    Raises:
        FrameError: the header or the body is too long.
    """
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(text) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES:
        raise FrameError(f"header of {len(text)} bytes, body of {len(body)} bytes: too long")
    prefix = PREFIX.pack(MAGIC, version, kind, 0, sequence, len(text), len(body))
    return prefix + text + body


def unpack(data: bytes) -> Frame:
    """Read a frame; the body is a view of ``data``.

    Raises:
        VersionError: a frame of another protocol version.
        FrameError: not a frame.
    """
    if len(data) < PREFIX.size:
        raise FrameError(f"{len(data)} bytes are no frame")
    magic, version, number, zero, sequence, header_bytes, body_bytes = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FrameError("it does not begin like a frame")
    if version != VERSION:
        raise VersionError(version)
    if number not in _KINDS or zero:
        raise FrameError(f"its kind is {number}")
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise FrameError(f"header of {header_bytes} bytes, body of {body_bytes} bytes: too long")
    start = PREFIX.size + header_bytes
    if len(data) != start + body_bytes:
        raise FrameError(f"{len(data)} bytes, its lengths say {start + body_bytes}")
    header = _header(data[PREFIX.size : start])
    return Frame(Kind(number), sequence, header, memoryview(data)[start:])


_KINDS = frozenset(int(kind) for kind in Kind)


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise FrameError("its header is not an object")
    return header


def _no_constant(name: str) -> None:
    raise ValueError(name)
