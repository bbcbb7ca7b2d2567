"""The newest output of one stream of a command, for readers that attach late or read slowly (wire protocol, section
3.5).

Positions are offsets: bytes of valid UTF-8 since the stream began. The buffer always holds at least the newest
`capacity` bytes; what is older goes, whole blocks at a time, so that it never holds more than `capacity` plus one
block.
"""

from __future__ import annotations

from collections import deque

from .utf8 import cut

__all__ = ["DEFAULT_CAPACITY", "OutputBuffer"]

DEFAULT_CAPACITY = 1 << 20
"""Bytes of each stream that are kept for replay."""

_SMALL = 64 * 1024
"""Bytes: pieces are gathered into blocks of up to this size, so that many small writes do not become many blocks."""

_LARGE = 256 * 1024
"""Bytes: no block is larger."""


class OutputBuffer:
    """A ring of valid UTF-8 that overwrites its oldest bytes.

    `start` is the offset of the oldest byte held, `end` the offset of the next byte to come. Both are always between
    two characters.
    """

    __slots__ = ("_blocks", "_capacity", "end", "start")

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"the capacity of a buffer must be positive, not {capacity}")
        self._capacity = capacity
        self._blocks: deque[bytes | bytearray] = deque()
        self.start: int = 0
        self.end: int = 0

    def __len__(self) -> int:
        return self.end - self.start

    def append(self, data: bytes) -> None:
        """Add output. `data` is valid UTF-8 of whole characters; it is kept, not copied, if it is large."""
        while len(data) > _LARGE:
            size = cut(data, _LARGE)
            self._append_block(data[:size])
            data = data[size:]
        if data:
            self._append_block(data)

    def _append_block(self, data: bytes) -> None:
        blocks = self._blocks
        last = blocks[-1] if blocks else b""
        if len(data) >= _SMALL:
            blocks.append(data)
        elif isinstance(last, bytearray) and len(last) + len(data) <= _SMALL:
            last += data
        else:
            blocks.append(bytearray(data))
        self.end += len(data)
        while self.end - self.start - len(blocks[0]) >= self._capacity:
            self.start += len(blocks.popleft())

    def read(self, offset: int, limit: int) -> tuple[int, bytes]:
        """Return output from `offset` on, and the offset at which it really begins.

        An offset that is too old moves forward to the oldest byte held, one in the middle of a character to the next
        character, one that is too new back to the end. The bytes are at most `limit`, at least four, and whole
        characters; they are empty only at the end. A call may return less than is there: call again until it returns
        nothing.
        """
        offset = max(offset, self.start)
        if offset >= self.end:
            return self.end, b""
        block, index = self._find(offset)
        while index < len(block) and block[index] & 0xC0 == 0x80:
            index += 1
            offset += 1
        if index == len(block):
            return self.read(offset, limit)
        if index == 0 and len(block) <= limit:
            return offset, bytes(block)
        with memoryview(block)[index:] as rest:
            return offset, bytes(rest[: cut(rest, limit)])

    def _find(self, offset: int) -> tuple[bytes | bytearray, int]:
        """Return the block that holds the byte at `offset`, which must be held, and its index there. Live readers are
        near the end.
        """
        begin = self.end
        for block in reversed(self._blocks):
            begin -= len(block)
            if begin <= offset:
                return block, offset - begin
        raise AssertionError(f"offset {offset} is not in {self.start}..{self.end}")  # pragma: no cover
