"""Where a command is reached, and the bounds of everything that its client does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import attrs

from .retry import Backoff
from .upgrade import check_upgrade
from .websocket import WebSocketLimits

__all__ = ["CommandPolicy", "Endpoint", "policy_from"]


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where a sandbox's commands are reached."""

    host: str
    """The `Host` header: name, and port unless it is the scheme's own."""
    target: str
    """Path and query, such as `/api/v2/sandboxes/ID/execute/ws`."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Sent with every upgrade, also when the connection is made anew."""

    def __attrs_post_init__(self) -> None:
        """Raise LocalProtocolError at once for what could never be sent, rather than when connecting."""
        check_upgrade(self.host, self.target, self.header_pairs())

    def header_pairs(self) -> list[tuple[bytes, bytes]]:
        """The headers as bytes."""
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]


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
    """From `kill` until the exit must have arrived. Time in which nobody takes the output does not count."""
    kill_patience: float = 1.0
    """After so long without an exit, a kill that went out behind input is sent again on a new connection."""
    timeout_grace: float = 30.0
    """What the daemon may take, over the command's own timeout, to report it; counted likewise."""
    max_pending_input_bytes: int = 2**20
    limits: WebSocketLimits = attrs.field(factory=lambda: WebSocketLimits(ping_interval=30.0, ping_timeout=60.0))


def policy_from(environ: Mapping[str, str]) -> CommandPolicy:
    """Return the bounds that an environment asks for (wire protocol, section 1.2).

    `LANGSMITH_SANDBOX_WS_TIMEOUT_OPEN` and `_CONNECT_BUDGET` bound one connection and the whole start, `_PING_INTERVAL`
    and `_PING` the keepalive; all in seconds. A value of zero or less takes the bound away; one that is no number is
    warned of and ignored. The prefix `LANGCHAIN_` does as well.
    """
    interval = _seconds(environ, "PING_INTERVAL", 30.0)
    patience = _seconds(environ, "PING", 60.0)
    keepalive = math.inf not in (interval, patience)
    return CommandPolicy(
        open_timeout=_seconds(environ, "OPEN", 30.0),
        start_timeout=_seconds(environ, "CONNECT_BUDGET", 120.0),
        limits=WebSocketLimits(ping_interval=interval if keepalive else None, ping_timeout=patience),
    )


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    for prefix in ("LANGSMITH", "LANGCHAIN"):
        variable = f"{prefix}_SANDBOX_WS_TIMEOUT_{name}"
        text = environ.get(variable, "").strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            warnings.warn(f"{variable}={text!r} is no number of seconds; {default:g} is used", stacklevel=3)
            return default
        return value if value > 0 else math.inf
    return default
