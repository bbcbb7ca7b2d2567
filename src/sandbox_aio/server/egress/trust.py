"""Puts the file of those whom a sandbox shall trust into it, by its daemon: no path of the host leads there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from ..daemon_client import DaemonClient, DaemonError
from .intercept import BUNDLE_PATH

if TYPE_CHECKING:
    from sandbox_aio.runtimes.base import DaemonAddress

__all__ = ["TrustError", "install"]

INSTALL_TIMEOUT: Final = 20.0
"""Seconds that it may take."""


class TrustError(Exception):
    """The file could not be written, so programs in the sandbox will not trust the certificates they meet."""


async def install(address: DaemonAddress, bundle: bytes) -> None:
    """Write the file. Raises TrustError."""
    try:
        async with asyncio.timeout(INSTALL_TIMEOUT), DaemonClient(address) as daemon:
            await daemon.write(BUNDLE_PATH, bundle)
    except (DaemonError, TimeoutError) as error:
        raise TrustError(f"the sandbox did not take its certificates: {error!r}") from error
