"""Waits for a sandbox or a snapshot to become ready (wire protocol, section 1.16)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import anyio

from ..errors import ResourceCreationError, ResourceTimeoutError
from ..models import ResourceStatus, Snapshot
from ..protocol.polling import Polling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["ProgressCallback", "Teller", "wait_until_ready"]

ProgressCallback: TypeAlias = "Callable[[str], Any]"
"""Is called with what the service says of its progress, such as `pulling: 2 of 5 layers, 10.0 of 31.4 MB`, whenever it
has changed. A coroutine function is awaited."""

R = TypeVar("R", ResourceStatus, Snapshot)


class Teller:
    """Tells a callback what is new."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._told: str | None = None

    async def tell(self, message: str | None) -> None:
        """Call it, unless it was told this last."""
        if self._callback is None or not message or message == self._told:
            return
        self._told = message
        result = self._callback(message)
        if inspect.isawaitable(result):
            await result


async def wait_until_ready(
    look: Callable[[], Awaitable[R]],
    *,
    what: str,
    name: str,
    timeout: float,
    poll_interval: float,
    on_progress: ProgressCallback | None = None,
) -> R:
    """Look, often at first and then every `poll_interval` seconds, at least once, until the status is `ready`.

    Args:
        what: `"sandbox"` or `"snapshot"`.
        on_progress: Called with each new message of one that is not ready yet.

    Raises:
        ResourceCreationError: It failed.
        ResourceTimeoutError: It was not ready within `timeout` seconds.
    """
    teller = Teller(on_progress)
    polling = Polling(anyio.current_time() + timeout, poll_interval)
    while True:
        found = await look()
        if found.status == "ready":
            return found
        if found.status == "failed":
            raise ResourceCreationError(found.status_message or f"the {what} {name!r} failed to become ready", what)
        await teller.tell(found.status_message)
        wait = polling.next_wait(anyio.current_time())
        if wait is None:
            raise ResourceTimeoutError(f"the {what} {name!r} was not ready within {timeout:g} s", what, found.status)
        await anyio.sleep(wait)
