"""The HTTP exchange that makes a connection a websocket (RFC 6455, section 4), either role.

The request and a 101 are made and read here, since every command begins with them; a refusal, which may have a body of
any kind, is read by wsproto. All is bounded, and cut anywhere it reads the same. The server's side gets a request
that was parsed by somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import attrs
from wsproto import ConnectionType, WSConnection
from wsproto.events import RejectConnection, RejectData, Request
from wsproto.utilities import RemoteProtocolError as WSRemoteError
from wsproto.utilities import generate_accept_token, generate_nonce

from ..errors import LocalProtocolError

__all__ = ["ClientUpgrade", "Headers", "Refused", "UpgradeError", "answer_upgrade", "check_upgrade"]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(rb"([!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?)?").fullmatch
_HOST = re.compile(r"[-.0-9A-Za-z_]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?").fullmatch
_TARGET = re.compile(r"/[!-~]*").fullmatch
_OURS = re.compile(
    rb"host|connection|upgrade|content-length|transfer-encoding|sec-websocket-.*", re.IGNORECASE
).fullmatch
_SWITCHING = re.compile(rb"HTTP/1\.1 101(?: [\t -~\x80-\xff]*)?").fullmatch
_KEY = re.compile(rb"[0-9A-Za-z+/]{22}==").fullmatch


class UpgradeError(ValueError):
    """The peer's answer is no answer to an upgrade. The text says what it is instead."""


@attrs.frozen(kw_only=True)
class Refused:
    """The peer answered the upgrade with something else than 101."""

    status: int
    headers: Headers
    body: bytes


def check_upgrade(host: str, target: str, headers: Headers) -> None:
    """See whether an upgrade request can be made of these.

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


class ClientUpgrade:
    """One upgrade request and the reading of its answer. `request` is what to send."""

    def __init__(
        self, *, host: str, target: str, headers: Headers, max_head_bytes: int, max_refusal_bytes: int
    ) -> None:
        """Make the request.

        Raises:
            LocalProtocolError: the host, the target or a header cannot be sent.
        """
        check_upgrade(host, target, headers)
        self._max_head_bytes = max_head_bytes
        self._max_refusal_bytes = max_refusal_bytes
        self._head = b""
        self._handshake: WSConnection | None = None
        self._refusal: RejectConnection | None = None
        self._body = b""
        self._key = generate_nonce()
        lines = [
            b"GET %b HTTP/1.1\r\nHost: %b\r\n" % (target.encode(), host.encode()),
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
            b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n" % self._key,
            *(b"%b: %b\r\n" % header for header in headers),
            b"\r\n",
        ]
        self.request: bytes = b"".join(lines)

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
        status, *lines = head[:-4].split(b"\r\n")
        if _SWITCHING(status):
            self._check_switch(lines)
            return rest
        self._read_refusal(head)
        assert self._refusal is not None
        return self._read_body(rest) if self._refusal.has_body else self._refused()

    def _check_switch(self, lines: list[bytes]) -> None:
        """See that a 101 is what was asked for (RFC 6455, section 4.1)."""
        values: dict[bytes, list[bytes]] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            value = value.strip(b"\t ")
            if not _NAME(name) or not _VALUE(value):
                raise UpgradeError(f"the answer to the upgrade has an invalid header: {line[:80]!r}")
            values.setdefault(name.lower(), []).append(value)
        tokens = [token.strip().lower() for value in values.get(b"connection", ()) for token in value.split(b",")]
        if b"upgrade" not in tokens or [value.lower() for value in values.get(b"upgrade", ())] != [b"websocket"]:
            raise UpgradeError("the answer to the upgrade is no upgrade to a websocket")
        if values.get(b"sec-websocket-accept") != [generate_accept_token(self._key)]:
            raise UpgradeError("the answer to the upgrade does not bear our key")
        if b"sec-websocket-extensions" in values or b"sec-websocket-protocol" in values:
            raise UpgradeError("the answer to the upgrade has an extension or a subprotocol that was not asked for")

    def _read_refusal(self, head: bytes) -> None:
        self._handshake = WSConnection(ConnectionType.CLIENT)
        self._handshake.send(Request(host="sandbox", target="/"))
        try:
            self._handshake.receive_data(head)
            event = next(self._handshake.events())
        except (WSRemoteError, ValueError) as exc:
            raise UpgradeError(f"the answer to the upgrade is invalid: {exc}") from None
        assert isinstance(event, RejectConnection)
        self._refusal = event

    def receive_eof(self) -> Refused | None:
        """Return the refusal, if that is what was being read."""
        return self._refused() if self._refusal is not None else None

    def _read_body(self, data: bytes) -> Refused | None:
        assert self._handshake is not None
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
