"""Where the bytes of an upload come from: memory, a file, a file object, an iterable."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import anyio
import anyio.to_thread
import attrs

if TYPE_CHECKING:
    from ..drivers.http_body import UploadSource

__all__ = ["Source", "upload_source"]

PIECE_BYTES = 1024 * 1024
"""How much of a file is in memory at a time."""

Source: TypeAlias = (
    "bytes | bytearray | memoryview | str | os.PathLike[str] | Readable | AsyncIterable[bytes] | Iterable[bytes]"
)
"""Bytes, the path of a local file, a binary file object, or an iterable of pieces."""


@runtime_checkable
class Readable(Protocol):
    """A binary file object."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; empty at the end."""
        ...


@attrs.frozen
class _Memory:
    content: bytes | bytearray | memoryview
    replayable = True

    @property
    def size(self) -> int:
        return memoryview(self.content).nbytes

    async def pieces(self) -> AsyncGenerator[bytes]:
        view = memoryview(self.content).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            yield bytes(view[start : start + PIECE_BYTES])


@attrs.frozen
class _LocalFile:
    path: str
    size: int
    replayable = True

    async def pieces(self) -> AsyncGenerator[bytes]:
        async with await anyio.open_file(self.path, "rb") as file:
            while piece := await file.read(PIECE_BYTES):
                yield piece


@attrs.frozen
class _FileObject:
    file: Readable
    size: None = None
    replayable = False

    async def pieces(self) -> AsyncGenerator[bytes]:
        while piece := await anyio.to_thread.run_sync(self.file.read, PIECE_BYTES):
            yield piece


@attrs.frozen
class _Pieces:
    iterable: AsyncIterable[bytes] | Iterable[bytes]
    size: None = None
    replayable = False

    async def pieces(self) -> AsyncGenerator[bytes]:
        if isinstance(self.iterable, AsyncGenerator):
            async with aclosing(self.iterable) as pieces:
                async for piece in pieces:
                    yield piece
        elif isinstance(self.iterable, AsyncIterable):
            async for piece in self.iterable:
                yield piece
        else:
            take = partial(next, iter(self.iterable), None)
            while (piece := await anyio.to_thread.run_sync(take)) is not None:
                yield piece


async def upload_source(source: Source) -> UploadSource:
    """Make any of the accepted things readable piece by piece.

    Raises:
        OSError: The local file cannot be examined.
        TypeError: It is none of the accepted things.
    """
    match source:
        case bytes() | bytearray() | memoryview():
            return _Memory(source)
        case str() | os.PathLike():
            path = os.fspath(source)
            return _LocalFile(path, (await anyio.Path(path).stat()).st_size)
        case AsyncIterable():
            return _Pieces(source)
    if isinstance(source, Readable):
        return _FileObject(source)
    if isinstance(source, Iterable):
        return _Pieces(source)
    raise TypeError(
        f"cannot upload a {type(source).__name__}: pass a path, a binary file, bytes, or an iterable of bytes"
    )
