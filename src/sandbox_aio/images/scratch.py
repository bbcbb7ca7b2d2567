"""Directories for what is on its way through the disk."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING

from ..removal import remove_tree
from ..shielding import shielded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["scratch"]


@contextlib.asynccontextmanager
async def scratch(work: Path, purpose: str) -> AsyncIterator[Path]:
    """A directory of its own in `work`, gone with the block.

    `work` is the directory of a `BlobStore`, which removes what a killed server leaves there. Raises OSError.
    """
    folder = work / f"{purpose}-{secrets.token_hex(8)}"
    try:
        await shielded(asyncio.to_thread(folder.mkdir, 0o700))
        yield folder
    finally:
        await shielded(asyncio.to_thread(remove_tree, str(folder)))
