"""Cancels a coroutine at its n-th checkpoint, for every n."""

from __future__ import annotations

from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

T = TypeVar("T")


async def cancel_at(number: int, function: Callable[[], Awaitable[object]]) -> bool:
    """Await `function()` and cancel it at the `number`-th time, from 0, that it gives way to the event loop.

    Returns:
        Whether it was still running then, so that a higher number is worth trying.
    """
    with anyio.CancelScope() as scope:

        @coroutine
        def steps() -> Generator[Any, Any, None]:
            running = function().__await__()
            step = 0
            send, value = running.send, None
            try:
                while True:
                    yielded = send(value)
                    if step == number:
                        scope.cancel()
                    step += 1
                    try:
                        value = yield yielded
                        send = running.send
                    except BaseException as exception:
                        value, send = exception, running.throw
            except StopIteration:
                return

        await steps()
    return scope.cancel_called
