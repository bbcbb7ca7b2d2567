"""Connections to what listens in the sandbox: a TCP port of its loopback interface, or a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..protocol.tunnel_preamble import TunnelTarget

__all__ = ["DialError", "dial"]

_DIAL_SECONDS = 5.0
"""How long whatever listens has to accept."""
_RETRY_SECONDS = 0.02
"""How soon a refused port is tried again, at first; each next time twice as late, up to the last."""
_RETRY_SECONDS_MAX = 0.2
_REFUSED = frozenset((errno.ECONNREFUSED, errno.ENOENT))
"""What it is called when nothing listens there yet."""


class DialError(Exception):
    """Nothing could be reached. The text says why."""


async def dial(target: TunnelTarget, patience: float = 0.0) -> socket.socket:
    """Return a connected, non-blocking socket.

    A port is tried at 127.0.0.1 and then at ::1, as literal addresses: no name is looked up.

    Args:
        patience: Seconds during which a target that refuses is tried again.

    Raises:
        DialError: nothing listens there, or it did not accept within 5 s.
    Cancellation: nothing is left open.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    pause = _RETRY_SECONDS
    while True:
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                return await _connect(target)
        except TimeoutError:
            raise DialError(f"{target} did not accept within {_DIAL_SECONDS:g} s") from None
        except OSError as error:
            left = until - loop.time()
            if error.errno not in _REFUSED or left <= 0:
                reason = "nothing listens there" if error.errno in _REFUSED else os.strerror(error.errno or 0)
                raise DialError(f"cannot connect to {target}: {reason}") from None
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 2, _RETRY_SECONDS_MAX)


async def _connect(target: TunnelTarget) -> socket.socket:
    if target.path is not None:
        return await _connect_one(socket.AF_UNIX, target.path)
    assert target.port is not None
    try:
        return await _connect_one(socket.AF_INET, ("127.0.0.1", target.port))
    except OSError as first:
        try:
            return await _connect_one(socket.AF_INET6, ("::1", target.port))
        except OSError as second:
            raise (second if first.errno in _REFUSED and second.errno != errno.EAFNOSUPPORT else first) from None


async def _connect_one(family: socket.AddressFamily, address: str | tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
            return sock
        if family == socket.AF_UNIX:  # its backlog is full, and nothing tells when that changes
            await asyncio.sleep(_RETRY_SECONDS)
            raise ConnectionRefusedError(errno.ECONNREFUSED, "its backlog is full")
        if not _is_connected(sock):  # to the machine itself it mostly is at once
            await _writable(sock)
        if failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        sock.close()
        raise
    return sock


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(sock, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(sock)
