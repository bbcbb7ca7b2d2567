"""Work that must be finished once it is begun."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["shielded"]

T = TypeVar("T")


async def shielded(work: Awaitable[T]) -> T:
    """Finish `work` whatever happens to the caller, who is cancelled only then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # Cancelled again, perhaps by a deadline; the work has deadlines of its own.
        raise
