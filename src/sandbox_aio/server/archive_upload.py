"""Takes the archive of an image that a client sends, piece by piece, into a file."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from sandbox_aio.images.scratch import scratch
from sandbox_aio.shielding import shielded

from .errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["received"]


@contextlib.asynccontextmanager
async def received(pieces: AsyncIterator[bytes], work: Path, max_bytes: int) -> AsyncIterator[Path]:
    """A file with all the pieces, in a directory of its own in `work`, which is gone with the block.

    Raises ApiError 413 for more than `max_bytes`, and 507 when the disk is full or fails. Cancellation leaves nothing.
    """
    async with scratch(work, "import") as folder:
        try:
            await _write(pieces, folder / "archive", max_bytes)
        except OSError as error:
            raise ApiError(507, "InsufficientStorage", f"the server's disk: {error}") from error
        yield folder / "archive"


async def _write(pieces: AsyncIterator[bytes], target: Path, max_bytes: int) -> None:
    size = 0
    file = await shielded(asyncio.to_thread(target.open, "xb"))
    try:
        async for piece in pieces:
            size += len(piece)
            if size > max_bytes:
                message = f"the archive has more than {max_bytes:,} bytes; raise fs_capacity_bytes"
                raise ApiError(413, "RequestTooLarge", message)
            await shielded(asyncio.to_thread(file.write, piece))
    finally:
        await shielded(asyncio.to_thread(file.close))
