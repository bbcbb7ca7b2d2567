"""Websocket frames by hand, a peer for each role, and everything that a websocket says as one list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sandbox_aio.protocol.websocket import Closed, Opened, Refused, WebSocket, WebSocketLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox_aio.protocol.upgrade import Headers
    from sandbox_aio.protocol.websocket import WebSocketEvent

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

UPGRADE: Headers = [
    (b"host", b"box"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
]
"""The headers of a valid request, with the key of RFC 6455, section 1.3."""

SMALL = WebSocketLimits(max_message_bytes=10_000, max_head_bytes=500, max_refusal_bytes=50)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = False, rsv: int = 0) -> bytes:
    """Make one frame. With `masked` its key is 01 02 03 04."""
    first = bytes((fin << 7 | rsv << 4 | opcode,))
    size = len(payload)
    if size < 126:
        length = bytes((masked << 7 | size,))
    elif size < 65536:
        length = bytes((masked << 7 | 126,)) + size.to_bytes(2, "big")
    else:
        length = bytes((masked << 7 | 127,)) + size.to_bytes(8, "big")
    if not masked:
        return first + length + payload
    mask = b"\1\2\3\4"
    return first + length + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def close_payload(code: int, reason: str = "") -> bytes:
    """Make the payload of a close frame."""
    return code.to_bytes(2, "big") + reason.encode()


def handshake(client: WebSocket) -> bytes:
    """Return the 101 that a server gives to this client's upgrade request, which is drained."""
    request = b"".join(client.bytes_to_send())
    lines = request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    return b"".join(WebSocket.accept(headers=headers).bytes_to_send())


def open_client(limits: WebSocketLimits | None = None) -> WebSocket:
    """Return a client whose upgrade succeeded at time 0, drained."""
    client = WebSocket.connect(host="box", target="/execute/ws", limits=limits)
    client.receive_bytes(handshake(client), 0.0)
    assert client.events() == [Opened()]
    return client


def open_server(limits: WebSocketLimits | None = None) -> WebSocket:
    """Return a server that accepted an upgrade, drained."""
    server = WebSocket.accept(headers=UPGRADE, limits=limits)
    server.bytes_to_send()
    return server


def open_one(role: str, limits: WebSocketLimits | None = None) -> WebSocket:
    """Return an open websocket of this role."""
    return open_client(limits) if role == "client" else open_server(limits)


def feed(websocket: WebSocket, pieces: Iterable[bytes], now: float = 1.0) -> list[WebSocketEvent]:
    """Feed the pieces one by one; return all events."""
    events: list[WebSocketEvent] = []
    for piece in pieces:
        websocket.receive_bytes(piece, now)
        events += websocket.events()
    return events


class Sender(Protocol):
    """A websocket, or what is on one."""

    def bytes_to_send(self) -> list[bytes]: ...


def sent(sender: Sender) -> list[tuple[int, bytes]]:
    """Drain what goes out on an open websocket, as opcodes and unmasked payloads."""
    data = b"".join(sender.bytes_to_send())
    frames: list[tuple[int, bytes]] = []
    while data:
        size, start = data[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start], "big")
        payload = data[start : start + size]
        if data[1] & 0x80:
            mask, start = data[start : start + 4], start + 4
            payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data[start : start + size]))
        frames.append((data[0] & 0x0F, payload))
        data = data[start + size :]
    return frames


def held(websocket: WebSocket) -> int:
    """Count the bytes that a websocket has read and not yet made an event of."""
    return len(websocket._tail) + sum(map(len, websocket._parts)) + len(websocket._message or b"")


def only_documented(events: list[WebSocketEvent]) -> bool:
    """Say whether a list of events is one that the module's text allows: at most one end, and nothing after it."""
    return all(isinstance(event, bytes | Opened) for event in events[:-1]) and isinstance(
        events[-1] if events else b"", bytes | Opened | Refused | Closed
    )
