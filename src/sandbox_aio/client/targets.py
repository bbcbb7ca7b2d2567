"""Where the bytes of a download go: a local file, which appears only when it is whole, or a file object."""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, TypeAlias

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

__all__ = ["Target", "open_target"]

Target: TypeAlias = str | os.PathLike[str] | IO[bytes]
"""The path of a local file, or a binary file object."""


@asynccontextmanager
async def open_target(target: Target) -> AsyncGenerator[Callable[[bytes], Awaitable[object]]]:
    """Yield the coroutine function that takes the bytes.

    A local file is written under another name in its folder and renamed when everything arrived; otherwise what was
    there stays as it was. A file object gets the bytes as they come.
    """
    if not isinstance(target, str | os.PathLike):
        write = target.write

        async def write_object(piece: bytes) -> object:
            return await anyio.to_thread.run_sync(write, piece)

        yield write_object
        return
    path = os.fspath(target)
    file = await anyio.to_thread.run_sync(_create_beside, path)
    try:

        async def write_file(piece: bytes) -> object:
            return await anyio.to_thread.run_sync(file.write, piece)

        yield write_file
        await anyio.to_thread.run_sync(_keep, file, path)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_discard, file)
        raise


def _create_beside(path: str) -> IO[bytes]:
    folder, name = os.path.split(path)
    return tempfile.NamedTemporaryFile(dir=folder or ".", prefix=f".{name}.", suffix=".part", delete=False)


def _keep(file: IO[bytes], path: str) -> None:
    file.close()
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file.name, 0o666 & ~umask)
    os.replace(file.name, path)


def _discard(file: IO[bytes]) -> None:
    file.close()
    os.unlink(file.name)
