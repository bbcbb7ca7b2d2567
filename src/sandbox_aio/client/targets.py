"""Where the bytes of a download go: a local file, which appears only when it is whole, or a file object."""

from __future__ import annotations

import os
import secrets
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Protocol, TypeAlias

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = ["Target", "Writable", "open_target"]

PIECE_BYTES = 1024 * 1024
"""How much is collected before it is written: each write is a trip to a worker thread."""


class Writable(Protocol):
    """A binary file object."""

    def write(self, data: bytes, /) -> object:
        """Take all of the data."""
        ...


Target: TypeAlias = str | os.PathLike[str] | Writable
"""The path of a local file, or a binary file object."""


class _Collector:
    """Hands bytes to a file in large pieces, in a worker thread."""

    def __init__(self, file: Writable) -> None:
        self._file = file
        self._pieces: list[bytes] = []
        self._size = 0

    async def write(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        data, self._pieces, self._size = b"".join(self._pieces), [], 0
        if data:
            await anyio.to_thread.run_sync(self._file.write, data)


@asynccontextmanager
async def open_target(target: Target) -> AsyncGenerator[Callable[[bytes], Awaitable[object]]]:
    """Yield the coroutine function that takes the bytes.

    A local file is written under another name in its folder and renamed when everything arrived; otherwise what was
    there stays as it was. A file object gets the bytes as they come; it is not closed.
    """
    if not isinstance(target, str | os.PathLike):
        collector = _Collector(target)
        yield collector.write
        await collector.flush()
        return
    path = os.fspath(target)
    file = await anyio.to_thread.run_sync(_create_beside, path)
    try:
        collector = _Collector(file)
        yield collector.write
        await collector.flush()
        await anyio.to_thread.run_sync(_keep, file, path)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_discard, file)
        raise


def _create_beside(path: str) -> IO[bytes]:
    folder, name = os.path.split(path)
    return open(os.path.join(folder, f".{name}.{secrets.token_hex(8)}.part"), "xb")


def _keep(file: IO[bytes], path: str) -> None:
    file.close()
    os.replace(file.name, path)


def _discard(file: IO[bytes]) -> None:
    file.close()
    os.unlink(file.name)
