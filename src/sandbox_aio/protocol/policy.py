"""Where a command is reached, and the bounds of everything that its client does."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from .retry import Backoff
from .websocket import WebSocketLimits

__all__ = ["CommandPolicy", "Endpoint"]


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where a sandbox's commands are reached."""

    host: str
    """The `Host` header: name, and port unless it is the scheme's own."""
    target: str
    """Path and query, such as `/api/v2/sandboxes/ID/execute/ws`."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Sent with every upgrade, also when the connection is made anew."""


@attrs.frozen(kw_only=True)
class CommandPolicy:
    """Bounds of one command. Seconds, bytes and numbers of tries."""

    open_timeout: float = 30.0
    """For one connection: transport and upgrade together."""
    start_timeout: float = 120.0
    """From `begin` until `started`, all tries together; also the longest that a `Retry-After` is honoured."""
    start_retries: int = 5
    reattach_attempts: int = 5
    """Connections that may be lost one after the other without a byte of output between them."""
    healthy_after: float = 30.0
    """An attachment that lasts this long gives all attempts back, output or not."""
    backoff: Backoff = attrs.field(factory=Backoff)
    kill_grace: float = 10.0
    """From `kill` until the exit must have arrived."""
    timeout_grace: float = 30.0
    """What the daemon may take, over the command's own timeout, to report it."""
    max_pending_input_bytes: int = 2**20
    limits: WebSocketLimits = attrs.field(factory=lambda: WebSocketLimits(ping_interval=30.0, ping_timeout=60.0))
