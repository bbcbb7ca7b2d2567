"""Every bound of the server, with its unit. Nothing that a peer controls grows past one of these."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BODY_TIMEOUT",
    "CLOSE_GRACE",
    "CONNECT_TIMEOUT",
    "EXPECT_PATIENCE",
    "HALF_CLOSED_TIMEOUT",
    "HEAD_TIMEOUT",
    "IDLE_TIMEOUT",
    "LINGER_BYTES",
    "LINGER_TIMEOUT",
    "MAX_CONNECTIONS",
    "MAX_FIELDS",
    "MAX_HEAD",
    "MAX_INTERIM",
    "MAX_JSON_BODY",
    "MAX_SERVICE_EXCHANGES",
    "MAX_TARGET",
    "PORT_PATIENCE",
    "READ_BUFFER",
    "SERVICE_BODY_TIMEOUT",
    "STREAM_SILENCE",
    "WRITE_BUFFER",
]

READ_BUFFER: Final = 256 * 1024
"""Bytes received and not yet consumed, per connection, at which reading pauses. One read may exceed it."""

WRITE_BUFFER: Final = 256 * 1024
"""Bytes accepted for sending, per connection, at which whoever produces them is paused."""

MAX_HEAD: Final = 64 * 1024
"""Bytes of a request or response head, and of a chunk's header."""

MAX_TARGET: Final = 32 * 1024
"""Bytes of a request line."""

MAX_FIELDS: Final = 256
"""Headers of a request."""

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

STREAM_SILENCE: Final = 60.0
"""Seconds between two pieces of the body of a request that is read as it comes."""

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

PORT_PATIENCE: Final = 5
"""Seconds in which a port of a sandbox that refuses is tried again: a program just started may not listen yet."""

EXPECT_PATIENCE: Final = 1.0
"""Seconds that a program has to answer `Expect: 100-continue`, before the client is asked for the body all the same."""

SERVICE_BODY_TIMEOUT: Final = 120.0
"""Seconds that the client of a service may be silent within a request's body, until the answer begins."""

MAX_INTERIM: Final = 16
"""Interim answers (1xx) before the answer itself."""

MAX_SERVICE_EXCHANGES: Final = 1000
"""Requests and websockets to the services of one sandbox at once. One more is answered 503."""
