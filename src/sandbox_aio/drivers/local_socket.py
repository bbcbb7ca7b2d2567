"""What a tunnel does with the sockets of local programs: each of these calls returns at once."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from typing import Final

from ..errors import TunnelLocalPortError

__all__ = ["READ_BYTES", "break_off", "end", "listen", "try_read", "try_write"]

BACKLOG: Final = 4096
"""Connections that the system completes before they are accepted; the kernel lowers it to its own bound."""
READ_BYTES: Final = 131_072
"""How much one read takes at the most. For a larger piece, the C library would get memory from the system each time."""


class _Shared(threading.local):
    """One buffer a thread, so that a connection that is silent costs no memory."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(READ_BYTES))


_shared = _Shared()


def listen(port: int) -> socket.socket:
    """Listen on 127.0.0.1; port 0 lets the system choose.

    Raises:
        TunnelLocalPortError: the port is taken, or not for us to use.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        if os.name == "posix":  # elsewhere it would let two programs listen on one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # take over from connections that linger
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        why = "is already in use" if taken else f"cannot be listened on: {error.strerror}"
        failure = TunnelLocalPortError(
            f"the local port {port} {why}; choose another local_port, or None to let the system choose"
        )
        failure.errno = error.errno
        raise failure from None
    return listener


def try_read(sock: socket.socket, limit: int) -> tuple[memoryview | None, bool]:
    """Read once.

    Returns: what came, which is good until the next call, None if nothing is there now, empty at the end; and whether
    that end was a reset.
    """
    size = min(limit, READ_BYTES)
    try:
        count = sock.recv_into(_shared.buffer, size)
    except BlockingIOError:
        return None, False
    except OSError:
        return _shared.buffer[:0], True
    return _shared.buffer[:count], False


def try_write(sock: socket.socket, data: bytes | memoryview) -> int:
    """Write once; return how much went, or -1 if the connection is broken."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0
    except OSError:
        return -1


def end(sock: socket.socket) -> None:
    """Say that nothing follows."""
    with contextlib.suppress(OSError):  # the program has gone already
        sock.shutdown(socket.SHUT_WR)


def break_off(sock: socket.socket) -> None:
    """Close such that the program sees a reset, and not an end."""
    with contextlib.suppress(OSError):  # the program has gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
