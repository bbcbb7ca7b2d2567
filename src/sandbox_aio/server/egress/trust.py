"""Puts the file of those whom a sandbox shall trust into it, by its daemon: no path of the host leads there."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Final

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
    boundary = secrets.token_hex(16).encode()
    part = b'--%s\r\ncontent-disposition: form-data; name="file"; filename="ca"\r\n\r\n' % boundary
    body = part + bundle + b"\r\n--%s--\r\n" % boundary
    head = (
        f"POST /upload?path={BUNDLE_PATH} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n"
        f"x-sandbox-secret: {address.secret}\r\ncontent-length: {len(body)}\r\n"
        f"content-type: multipart/form-data; boundary={boundary.decode()}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(INSTALL_TIMEOUT):
            if address.path is not None:
                reader, writer = await asyncio.open_unix_connection(address.path)
            else:
                reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                writer.write(head.encode("ascii") + body)
                await writer.drain()
                status = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, ValueError) as error:
        raise TrustError(f"the sandbox did not take its certificates: {error!r}") from error
    if not status.startswith(b"HTTP/1.1 2"):
        raise TrustError(f"the sandbox did not take its certificates: {status[:100]!r}")
