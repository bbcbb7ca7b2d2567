"""Byte-exact positions in a command's output (wire protocol, section 3.5).

A cursor knows the offset of the next byte it expects. The daemon may start a replay earlier than it was asked to;
what we had already is dropped. It may start later, because its buffer has lost the rest; then the loss is said, as an
`OutputGap`.

Within one attachment, after the first chunk that goes past what we had, the daemon's offsets are the truth: a daemon
that counts the bytes it read, while it sends replacement characters for invalid ones, gives offsets that lag behind
the bytes that arrive. Dropping "overlap" there would lose output, so from then on such a chunk is taken whole and the
cursor follows the daemon.
"""

from __future__ import annotations

from ..models import OutputChunk, OutputGap
from .frames import UNKNOWN_OFFSET
from .utf8 import repair_surrogates

__all__ = ["OutputCursor", "measure"]


def measure(chunk: OutputChunk) -> tuple[OutputChunk, int]:
    """Return the chunk, free of lone surrogates, and the number of bytes that its text takes on the wire."""
    text = chunk.data
    if text.isascii():
        return chunk, len(text)
    try:
        return chunk, len(text.encode())
    except UnicodeEncodeError:
        whole = OutputChunk(chunk.stream, repair_surrogates(text), chunk.offset)
        return whole, len(whole.data.encode())


class OutputCursor:
    """The position in one stream.

    `offset` is the next byte expected, to be sent in a `Reconnect`. `caught_up` is false from an attachment's
    beginning until a chunk has gone past what we had.
    """

    __slots__ = ("caught_up", "missing", "offset")

    def __init__(self, offset: int = 0) -> None:
        self.offset: int = offset
        self.caught_up: bool = False
        self.missing: int = 0
        """Bytes that are known to be lost, in all gaps together."""

    def attached(self) -> None:
        """A new attachment begins: a replay may overlap what we had."""
        self.caught_up = False

    def accept(self, chunk: OutputChunk) -> list[OutputChunk | OutputGap]:
        """Return what is new in a chunk: nothing, the chunk, its end, or a gap and the chunk."""
        chunk, size = measure(chunk)
        offset = self.offset if chunk.offset == UNKNOWN_OFFSET else chunk.offset
        if offset != chunk.offset:
            chunk = OutputChunk(chunk.stream, chunk.data, offset)
        end = offset + size
        if offset > self.offset:
            gap = OutputGap(chunk.stream, "", self.offset, missing_bytes=offset - self.offset)
            self.missing += gap.missing_bytes
            self._move(end)
            return [gap, chunk] if size else [gap]
        if not size:
            return []
        if offset == self.offset or self.caught_up:
            self._move(end)
            return [chunk]
        if end <= self.offset:
            return []
        fresh = chunk.data.encode()[self.offset - offset :].decode("utf-8", "replace")
        tail = OutputChunk(chunk.stream, fresh, self.offset)
        self._move(end)
        return [tail]

    def _move(self, end: int) -> None:
        self.offset = end
        self.caught_up = True
