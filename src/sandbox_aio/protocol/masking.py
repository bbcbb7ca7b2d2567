"""The masking of a websocket client's payloads (RFC 6455, section 5.3), for those that do not go through wsproto.

A payload is XORed with a key of four bytes, over and over. Short ones are XORed as one integer, long ones by a table
for each byte of the key, whichever is faster.
"""

from __future__ import annotations

import base64
from typing import Final

from wsproto.utilities import generate_nonce

__all__ = ["MaskingKeys", "mask"]

_TABLES: Final = tuple(bytes(byte ^ key for byte in range(256)) for key in range(256))
_SHORT: Final = 512
"""Bytes up to which one integer is faster than four tables."""


class MaskingKeys:
    """Draws keys of four bytes that nobody can predict, four at a time."""

    __slots__ = ("_drawn",)

    def __init__(self) -> None:
        self._drawn = b""

    def next(self) -> bytes:
        """Return a key that was not used before."""
        if not self._drawn:
            self._drawn = base64.b64decode(generate_nonce())
        key, self._drawn = self._drawn[:4], self._drawn[4:]
        return key


def mask(payload: bytes | bytearray | memoryview, key: bytes) -> bytes:
    """Mask a payload with a key of four bytes, or take the mask off. A long `bytearray` is of no use afterwards."""
    size = len(payload)
    if size <= _SHORT:
        repeated = (key * (size // 4 + 1))[:size]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")
    masked = payload if isinstance(payload, bytearray) else bytearray(payload)
    for position in range(4):
        masked[position::4] = masked[position::4].translate(_TABLES[key[position]])
    return bytes(masked)
