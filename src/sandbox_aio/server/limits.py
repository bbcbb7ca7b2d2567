"""Every bound of the server, with its unit. Nothing that a peer controls grows past one of these."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BODY_TIMEOUT",
    "CLOSE_GRACE",
    "CONNECT_TIMEOUT",
    "HALF_CLOSED_TIMEOUT",
    "HEAD_TIMEOUT",
    "IDLE_TIMEOUT",
    "LINGER_BYTES",
    "LINGER_TIMEOUT",
    "MAX_CONNECTIONS",
    "MAX_HEAD",
    "MAX_JSON_BODY",
    "READ_BUFFER",
    "WRITE_BUFFER",
]

READ_BUFFER: Final = 256 * 1024
"""Bytes received and not yet consumed, per connection, at which reading pauses. One read may exceed it."""

WRITE_BUFFER: Final = 256 * 1024
"""Bytes accepted for sending, per connection, at which whoever produces them is paused."""

MAX_HEAD: Final = 64 * 1024
"""Bytes of a request or response head, and of a chunk's header."""

MAX_JSON_BODY: Final = 1024 * 1024
"""Bytes of a control-plane request body."""

MAX_CONNECTIONS: Final = 10_000
"""Public connections at once. One more is answered 503 and closed."""

HEAD_TIMEOUT: Final = 10.0
"""Seconds from the first byte of a request to the end of its head."""

IDLE_TIMEOUT: Final = 120.0
"""Seconds that a connection may be open without a request."""

BODY_TIMEOUT: Final = 30.0
"""Seconds in which the body of a control-plane request comes."""

CONNECT_TIMEOUT: Final = 10.0
"""Seconds in which a daemon accepts a connection."""

HALF_CLOSED_TIMEOUT: Final = 30.0
"""Seconds that a client of a websocket has to close its side after the daemon has closed its own."""

LINGER_TIMEOUT: Final = 2.0
"""Seconds in which a peer that is still sending may read our last words before the connection is reset."""

LINGER_BYTES: Final = 1024 * 1024
"""Bytes that are read and discarded in that time."""

CLOSE_GRACE: Final = 2.0
"""Seconds that requests and websockets have at shutdown to come to their end."""
