"""The connections of one tunnel, one after the other: when to connect, and when to give up.

A tunnel that loses its connection makes another one when somebody needs it, and not before. It then tries at most
`max_reconnects` times, waiting longer each time. Wire protocol, section 5.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import LocalProtocolError
from .retry import Attempts, Backoff
from .states import step
from .tunnel import ClientTunnel
from .tunnel_states import LINK_TRANSITIONS, LinkInput, LinkState
from .websocket import Refused, WebSocket, WebSocketLimits

if TYPE_CHECKING:
    from .policy import Endpoint
    from .yamux_events import YamuxLimits

__all__ = ["TunnelLink"]

_WORTH_ANOTHER_TRY: Final = frozenset((429, 500, 502, 503, 504))
"""Answers to an upgrade after which it may succeed later."""


class TunnelLink:
    """Makes a `ClientTunnel` for each connection, and says when the next one is due."""

    def __init__(self, endpoint: Endpoint, *, max_reconnects: int, limits: YamuxLimits, backoff: Backoff) -> None:
        """Nothing is wanted yet.

        Raises:
            ValueError: `max_reconnects` is negative.
        """
        if max_reconnects < 0:
            raise ValueError(f"max_reconnects is 0 or a positive number, not {max_reconnects!r}")
        self.state: LinkState = LinkState.IDLE
        self.reconnects: int = 0
        """Connections that were made after the first one."""
        self.failure: str | None = None
        """Why the last connection was lost or could not be made; None after one was made."""
        self.refused: Refused | None = None
        """What the server answered instead, if that was it."""
        self._endpoint = endpoint
        self._limits = limits
        self._backoff = backoff
        self._attempts = Attempts(max_reconnects)
        self._established = False
        self._due = 0.0

    def want(self, now: float) -> None:
        """Say that a connection is needed. Nothing happens while there is one, or one is being made.

        Raises:
            LocalProtocolError: the tunnel is closed, or may not connect again.
        """
        if self.state is LinkState.CLOSED:
            raise LocalProtocolError("the tunnel is closed")
        if self.state is not LinkState.IDLE:
            return
        if self._established:
            self._attempts.refill()
            if not self._attempts.spend():
                raise LocalProtocolError("the tunnel has lost its connection and may not make another one")
        self._due = now
        self._step(LinkInput.WANT)

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.state is LinkState.OPEN

    @property
    def connecting(self) -> bool:
        """Whether one is being made, or will be."""
        return self.state is LinkState.DUE or self.state is LinkState.CONNECTING

    def connect_at(self) -> float | None:
        """When the driver has to connect; None if not at all."""
        return self._due if self.state is LinkState.DUE else None

    def begin(self) -> ClientTunnel:
        """The driver has a transport: return the connection to run on it."""
        self._step(LinkInput.BEGIN)
        websocket = WebSocket.connect(
            host=self._endpoint.host,
            target=self._endpoint.target,
            headers=self._endpoint.header_pairs(),
            limits=WebSocketLimits(max_message_bytes=2**20),
        )
        return ClientTunnel(websocket, self._limits)

    def opened(self) -> None:
        """The connection is there."""
        self._step(LinkInput.OPEN)
        if self._established:
            self.reconnects += 1
        self._established = True
        self.failure = self.refused = None

    def lost(self, reason: str, now: float, *, chance: float, refused: Refused | None = None) -> None:
        """The connection is over, or could not be made. While it was being made, another try may follow.

        Args:
            chance: in [0, 1), for the length of the wait.
            refused: What the server answered instead.
        """
        self.failure, self.refused = reason, refused
        hopeless = refused is not None and refused.status not in _WORTH_ANOTHER_TRY
        if self.state in (LinkState.OPEN, LinkState.CLOSED):
            self._step(LinkInput.LOSE)
        elif self._established and not hopeless and self._attempts.spend():
            self._due = now + self._backoff.delay(self._attempts.used - 1, chance)
            self._step(LinkInput.RETRY)
        else:
            self._step(LinkInput.LOSE)

    def close(self) -> None:
        """No further connection is made. Closing again does nothing."""
        if self.state is not LinkState.CLOSED:
            self._step(LinkInput.CLOSE)

    def _step(self, input: LinkInput) -> None:
        self.state = step(LINK_TRANSITIONS, self.state, input)
