"""Work that must be finished once it is begun."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["in_thread", "shielded"]

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


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread. Cancellation: sets the event that it was given, and waits until it has ended."""
    stop = threading.Event()
    task = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await shielded(asyncio.wait([task]))
        if not task.cancelled():
            task.exception()  # Looked at, so that it is not reported as never looked at.
        raise
