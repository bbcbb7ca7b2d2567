"""UTF-8 in pieces: what a process writes becomes valid UTF-8 whose characters are never split.

Offsets on the wire count bytes of what was sent (wire protocol, section 3.5), so invalid bytes are replaced once, on
entry, and everything after that is counted in the replaced bytes.
"""

from __future__ import annotations

import codecs
import re

__all__ = ["Utf8Transcoder", "cut", "repair_surrogates"]

_decoder = codecs.getincrementaldecoder("utf-8")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Utf8Transcoder:
    """Turn arbitrary bytes, arriving in any pieces, into valid UTF-8 of whole characters.

    Each maximal invalid subpart becomes U+FFFD (three bytes). The first bytes of a character that is still
    incomplete, at most three, are held back until it is complete or `finish` is called. However the input is cut, the
    concatenated output is the same.
    """

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = _decoder("replace")

    def feed(self, data: bytes) -> bytes:
        """Return the valid UTF-8 that can be emitted now."""
        if data.isascii() and not self._decoder.getstate()[0]:
            return data
        return self._decoder.decode(data).encode()

    def finish(self) -> bytes:
        """Return what the held back bytes become at the end of the stream, and start anew."""
        tail = self._decoder.decode(b"", final=True).encode()
        self._decoder.reset()
        return tail


def cut(data: bytes | bytearray | memoryview, limit: int) -> int:
    """Return the largest length, at most `limit`, at which valid UTF-8 can be cut between two characters.

    Returns 0 if the first character alone is longer than `limit`.
    """
    if limit >= len(data):
        return len(data)
    end = limit
    while end > 0 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def repair_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot, by U+FFFD.

    The length in bytes stays the same: three each.
    """
    try:
        text.encode()  # a third of what a search costs
    except UnicodeEncodeError:
        return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
    return text
