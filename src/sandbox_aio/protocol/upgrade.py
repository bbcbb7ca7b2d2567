"""The HTTP exchange that makes a connection a websocket (RFC 6455, section 4), either role.

The client's side is wsproto's, with bounds, and cut anywhere it reads the same. The server's side gets a request that
was parsed by somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import attrs
from wsproto import ConnectionType, WSConnection
from wsproto.events import RejectConnection, RejectData, Request
from wsproto.utilities import RemoteProtocolError as WSRemoteError
from wsproto.utilities import generate_accept_token

from ..errors import LocalProtocolError

__all__ = ["ClientUpgrade", "Headers", "Refused", "UpgradeError", "answer_upgrade"]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(rb"([!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?)?").fullmatch
_HOST = re.compile(r"[-.0-9A-Za-z_]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?").fullmatch
_TARGET = re.compile(r"/[!-~]*").fullmatch
_OURS = re.compile(
    rb"host|connection|upgrade|content-length|transfer-encoding|sec-websocket-.*", re.IGNORECASE
).fullmatch
_KEY = re.compile(rb"[0-9A-Za-z+/]{22}==").fullmatch


class UpgradeError(ValueError):
    """The peer's answer is no answer to an upgrade. The text says what it is instead."""


@attrs.frozen(kw_only=True)
class Refused:
    """The peer answered the upgrade with something else than 101."""

    status: int
    headers: Headers
    body: bytes


class ClientUpgrade:
    """One upgrade request and the reading of its answer. `request` is what to send."""

    def __init__(
        self, *, host: str, target: str, headers: Headers, max_head_bytes: int, max_refusal_bytes: int
    ) -> None:
        """Make the request.

        Raises:
            LocalProtocolError: the host, the target or a header cannot be sent.
        """
        if not _HOST(host):
            raise LocalProtocolError(f"{host!r} cannot be a Host header")
        if not _TARGET(target):
            raise LocalProtocolError(f"{target!r} cannot be the target of a request")
        for name, value in headers:
            if not _NAME(name) or not _VALUE(value) or _OURS(name):
                raise LocalProtocolError(f"the header {name!r} cannot be sent with a websocket's upgrade")
        self._handshake = WSConnection(ConnectionType.CLIENT)
        self._max_head_bytes = max_head_bytes
        self._max_refusal_bytes = max_refusal_bytes
        self._head = b""
        self._refusal: RejectConnection | None = None
        self._body = b""
        try:
            self.request = self._handshake.send(Request(host=host, target=target, extra_headers=list(headers)))
        except UnicodeError as exc:
            raise LocalProtocolError(f"{host!r} cannot be a Host header: {exc}") from None

    def receive_bytes(self, data: bytes) -> bytes | Refused | None:
        """Read on.

        Returns: what came behind a 101, the refusal, or None while the answer is not whole.

        Raises:
            UpgradeError: there is no use in reading on.
        """
        if self._refusal is not None:
            return self._read_body(data)
        self._head += data
        if not self._head.startswith(b"HTTP/"[: len(self._head)]):
            raise UpgradeError("the answer to the upgrade is not HTTP")
        end = self._head.find(b"\r\n\r\n", 0, self._max_head_bytes) + 4
        if end < 4:
            if len(self._head) > self._max_head_bytes:
                raise UpgradeError("the answer to the upgrade has an oversized head")
            return None
        head, rest = self._head[:end], self._head[end:]
        try:
            self._handshake.receive_data(head)
        except (WSRemoteError, ValueError) as exc:
            raise UpgradeError(f"the answer to the upgrade is invalid: {exc}") from None
        event = next(self._handshake.events())
        if not isinstance(event, RejectConnection):
            return rest
        self._refusal = event
        return self._read_body(rest) if event.has_body else self._refused()

    def receive_eof(self) -> Refused | None:
        """Return the refusal, if that is what was being read."""
        return self._refused() if self._refusal is not None else None

    def _read_body(self, data: bytes) -> Refused | None:
        finished = False
        if data:  # wsproto takes an empty read for the end of the stream
            try:
                self._handshake.receive_data(data)
            except WSRemoteError:
                finished = True
        for event in self._handshake.events():
            assert isinstance(event, RejectData)
            self._body += event.data
            finished = finished or event.body_finished
        return self._refused() if finished or len(self._body) >= self._max_refusal_bytes else None

    def _refused(self) -> Refused:
        assert self._refusal is not None
        body = self._body[: self._max_refusal_bytes]
        return Refused(status=self._refusal.status_code, headers=list(self._refusal.headers), body=body)


def answer_upgrade(headers: Headers) -> bytes:
    """Return the 101 for the upgrade request that had these headers.

    Raises:
        LocalProtocolError: it is no valid upgrade to a websocket; answer it with 400.
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value.strip())
    tokens = [token.strip().lower() for value in values.get(b"connection", ()) for token in value.split(b",")]
    keys = values.get(b"sec-websocket-key", [])
    if b"upgrade" not in tokens or [value.lower() for value in values.get(b"upgrade", ())] != [b"websocket"]:
        raise LocalProtocolError("the request is no upgrade to a websocket")
    if values.get(b"sec-websocket-version") != [b"13"]:
        raise LocalProtocolError("the upgrade is not to version 13 of the websocket protocol")
    if len(keys) != 1 or not _KEY(keys[0]):
        raise LocalProtocolError("the upgrade has no valid Sec-WebSocket-Key")
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n"
    ) % generate_accept_token(keys[0])
