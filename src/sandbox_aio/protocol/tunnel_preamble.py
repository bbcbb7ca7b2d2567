"""What a tunnel's stream begins with: where it leads, and what became of that (wire protocol, section 5.4).

The client sends a target, the daemon answers with one byte, and then the stream belongs to the two programs. Beside
the protocol's version 1, a port, there is a version 2 of our own: a unix socket's path. A server that does not know
it answers `UNSUPPORTED_VERSION`.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

__all__ = ["PreambleParser", "TunnelStatus", "TunnelTarget"]

_PORT_VERSION: Final = 1
_PATH_VERSION: Final = 2
MAX_PATH_BYTES: Final = 107
"""The longest path that a unix socket has on Linux."""


class TunnelStatus(enum.IntEnum):
    """The daemon's answer."""

    CONNECTED = 0
    PORT_NOT_ALLOWED = 1
    REFUSED = 2
    """Nothing listens there, or it did not answer in time."""
    UNSUPPORTED_VERSION = 3


@attrs.frozen(kw_only=True)
class TunnelTarget:
    """A TCP port of the sandbox's loopback interface, or the absolute path of a unix socket in it; one of the two."""

    port: int | None = None
    path: str | None = None

    def __attrs_post_init__(self) -> None:
        """Raise ValueError, before anything is opened, for what no preamble can say."""
        if (self.port is None) == (self.path is None):
            raise ValueError("a tunnel leads either to a port or to the path of a unix socket")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"a port is a number from 1 to 65535, not {self.port!r}")
        if self.path is not None:
            size = len(self.path.encode())
            if not self.path.startswith("/") or "\0" in self.path or size > MAX_PATH_BYTES:
                raise ValueError(
                    f"the path of a unix socket is absolute and has at most {MAX_PATH_BYTES} bytes, not {self.path!r}"
                )

    def encode(self) -> bytes:
        """The preamble."""
        if self.port is not None:
            return bytes((_PORT_VERSION,)) + self.port.to_bytes(2, "big")
        assert self.path is not None
        path = self.path.encode()
        return bytes((_PATH_VERSION,)) + len(path).to_bytes(2, "big") + path

    def __str__(self) -> str:
        return f"port {self.port}" if self.port is not None else f"the socket {self.path}"


class PreambleParser:
    """Reads one preamble that arrives in any pieces."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def receive_bytes(self, data: bytes | memoryview) -> tuple[TunnelTarget | TunnelStatus, bytes] | None:
        """Read on.

        Returns: None while the preamble is not whole; then the target, or the status with which to refuse it, and what
        followed it.
        """
        self._data += bytes(data)
        if self._data and self._data[0] not in (_PORT_VERSION, _PATH_VERSION):
            return TunnelStatus.UNSUPPORTED_VERSION, b""
        if len(self._data) < 3:
            return None
        number = int.from_bytes(self._data[1:3], "big")
        if self._data[0] == _PORT_VERSION:
            return (TunnelTarget(port=number) if number else TunnelStatus.PORT_NOT_ALLOWED), self._data[3:]
        if number > MAX_PATH_BYTES:
            return TunnelStatus.REFUSED, b""
        if len(self._data) < 3 + number:
            return None
        try:
            target = TunnelTarget(path=self._data[3 : 3 + number].decode())
        except ValueError:  # not UTF-8, not absolute, or with a NUL
            return TunnelStatus.REFUSED, b""
        return target, self._data[3 + number :]
