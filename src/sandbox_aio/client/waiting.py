"""Waits for a sandbox or a snapshot to become ready (wire protocol, section 1.16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio

from ..errors import ResourceCreationError, ResourceTimeoutError
from ..models import ResourceStatus, Snapshot
from ..protocol.polling import Polling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["wait_until_ready"]

R = TypeVar("R", ResourceStatus, Snapshot)


async def wait_until_ready(
    look: Callable[[], Awaitable[R]], *, what: str, name: str, timeout: float, poll_interval: float
) -> R:
    """Look, often at first and then every `poll_interval` seconds, at least once, until the status is `ready`.

    Args:
        what: `"sandbox"` or `"snapshot"`.

    Raises:
        ResourceCreationError: It failed.
        ResourceTimeoutError: It was not ready within `timeout` seconds.
    """
    polling = Polling(anyio.current_time() + timeout, poll_interval)
    while True:
        found = await look()
        if found.status == "ready":
            return found
        if found.status == "failed":
            raise ResourceCreationError(found.status_message or f"the {what} {name!r} failed to become ready", what)
        wait = polling.next_wait(anyio.current_time())
        if wait is None:
            raise ResourceTimeoutError(f"the {what} {name!r} was not ready within {timeout:g} s", what, found.status)
        await anyio.sleep(wait)
