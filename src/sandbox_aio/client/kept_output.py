"""The output of a command as its result keeps it: everything, or its beginning and its end."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..models import OutputGap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..models import OutputChunk

__all__ = ["HANDLE_OUTPUT_BYTES", "KeptOutput"]

HANDLE_OUTPUT_BYTES = 4 * 2**20
"""What a handle keeps of each stream for its result unless it is told otherwise."""

_SMALL = 1024


class KeptStream:
    """One stream. With a limit, half of it is for the beginning and half for the end."""

    __slots__ = ("_head", "_head_room", "_tail", "_tail_bytes", "_tail_limit", "dropped_bytes")

    def __init__(self, limit: int | None) -> None:
        self.dropped_bytes: int = 0
        self._head: list[str] = []
        self._head_room = limit // 2 if limit is not None else None
        self._tail: deque[str] = deque()
        self._tail_bytes = 0
        self._tail_limit = limit - limit // 2 if limit is not None else 0

    def add(self, pieces: list[str]) -> None:
        """Add pieces of text in order."""
        if self._head_room is None:
            self._head += pieces
            return
        size = sum(map(len, pieces))
        if size <= self._head_room:
            self._head.append("".join(pieces))
            self._head_room -= size
            return
        if self._head_room:
            text = "".join(pieces)
            self._head.append(text[: self._head_room])
            pieces = [text[self._head_room :]]
            size -= self._head_room
            self._head_room = 0
        elif size < _SMALL * len(pieces):
            pieces = ["".join(pieces)]
        self._tail += pieces
        self._tail_bytes += size
        while self._tail_bytes > self._tail_limit:
            self._trim()

    def _trim(self) -> None:
        """Drop the oldest piece of the tail, or as much of it as is over the limit."""
        excess = self._tail_bytes - self._tail_limit
        dropped = self._tail.popleft()
        if len(dropped) > excess:
            self._tail.appendleft(dropped[excess:])
            dropped = dropped[:excess]
        self.dropped_bytes += len(dropped) if dropped.isascii() else len(dropped.encode())
        self._tail_bytes -= len(dropped)

    def text(self) -> str:
        """Return what is kept."""
        self._head = ["".join(self._head)]
        return "".join([*self._head, *self._tail]) if self._tail else self._head[0]


class KeptOutput:
    """Both streams.

    Args:
        limit: How many characters of each stream to keep; None for all of them.

    Raises:
        ValueError: The limit is negative.
    """

    __slots__ = ("stderr", "stdout")

    def __init__(self, limit: int | None) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"max_output_bytes is {limit}; it must be None, for everything, or not negative")
        self.stdout: KeptStream = KeptStream(limit)
        self.stderr: KeptStream = KeptStream(limit)

    def add(self, chunks: Iterable[OutputChunk]) -> None:
        """Add a batch."""
        out: list[str] = []
        err: list[str] = []
        for chunk in chunks:
            if chunk.stream == "stdout":
                out.append(chunk.data)
            else:
                err.append(chunk.data)
            if type(chunk) is OutputGap:
                stream = self.stdout if chunk.stream == "stdout" else self.stderr
                stream.dropped_bytes += chunk.missing_bytes
        if out:
            self.stdout.add(out)
        if err:
            self.stderr.add(err)
