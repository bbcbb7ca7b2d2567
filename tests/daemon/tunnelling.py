"""A client of `/tunnel` on a blocking socket, and services for it to reach."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import attrs

from sandbox_aio.protocol.tunnel import ClientTunnel, StreamConnected, TunnelClosed, TunnelEvent, TunnelOpened
from sandbox_aio.protocol.tunnel_preamble import TunnelTarget
from sandbox_aio.protocol.websocket import WebSocket, WebSocketLimits
from sandbox_aio.protocol.yamux_events import StreamData, StreamEnded, YamuxLimits
from tests.daemon.process import SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 10.0


class Tunnel:
    """One connection, turned by hand: `until` reads until something is so."""

    def __init__(self, connection: socket.socket, limits: YamuxLimits | None = None) -> None:
        self.connection = connection
        headers = [(b"x-sandbox-secret", SECRET.encode())]
        websocket = WebSocket.connect(
            host="sandbox", target="/tunnel", headers=headers, limits=WebSocketLimits(max_message_bytes=2**20)
        )
        self.core = ClientTunnel(websocket, limits or YamuxLimits())
        self.seen: list[TunnelEvent] = []
        self.received: dict[int, bytes] = {}
        self.flush()
        self.until(lambda: TunnelOpened() in self.seen)

    def flush(self) -> None:
        """Send what is queued."""
        self.connection.sendall(b"".join(self.core.bytes_to_send()))

    def turn(self) -> None:
        """Receive once, consume everything, answer."""
        data = self.connection.recv(65536)
        if data:
            self.core.receive_bytes(data, time.monotonic())
        else:
            self.core.receive_eof(time.monotonic())
        for event in self.core.events():
            if isinstance(event, StreamData):
                self.received[event.stream_id] = self.received.get(event.stream_id, b"") + bytes(event.data)
                self.core.consume(event.stream_id, len(event.data))
            else:
                self.seen.append(event)
        with contextlib.suppress(OSError):  # the daemon closed it after its last word
            self.flush()

    def until(self, so: Callable[[], bool]) -> None:
        """Turn until something is so."""
        self.connection.settimeout(PATIENCE)
        while not so():
            assert not any(isinstance(event, TunnelClosed) for event in self.seen), self.seen
            self.turn()

    def open(self, target: TunnelTarget) -> int:
        """Open a stream without waiting."""
        stream_id = self.core.open_stream(target, time.monotonic())
        self.flush()
        return stream_id

    def connect(self, target: TunnelTarget) -> int:
        """Open a stream and wait until it is connected."""
        stream_id = self.open(target)
        self.until(lambda: StreamConnected(stream_id) in self.seen)
        return stream_id

    def send(self, stream_id: int, data: bytes) -> None:
        """Send all of it, reading meanwhile."""
        rest = memoryview(data)
        while rest:
            self.until(lambda: self.core.send_window(stream_id) > 0)
            size = min(self.core.send_window(stream_id), len(rest))
            self.core.send_data(stream_id, rest[:size])
            self.flush()
            rest = rest[size:]

    def end(self, stream_id: int) -> None:
        """Say that nothing follows."""
        self.core.end_stream(stream_id)
        self.flush()

    def read_to_end(self, stream_id: int) -> bytes:
        """All that a stream brings until its end."""
        self.until(lambda: StreamEnded(stream_id) in self.seen)
        return self.received.get(stream_id, b"")


@attrs.define
class Listener:
    """Something that listens, and what it does with each connection in a thread of its own."""

    socket: socket.socket
    threads: list[threading.Thread]

    @property
    def target(self) -> TunnelTarget:
        """Where it is."""
        address = self.socket.getsockname()
        return TunnelTarget(path=address) if isinstance(address, str) else TunnelTarget(port=address[1])


@contextlib.contextmanager
def listening(
    serve: Callable[[socket.socket], None],
    family: int = socket.AF_INET,
    address: str | tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[Listener]:
    """Serve connections by `serve` until the block ends; every thread is joined."""
    with socket.socket(family) as server:
        server.bind(address)
        server.listen(512)
        listener = Listener(server, [])

        def handle(connection: socket.socket) -> None:
            with connection, contextlib.suppress(ConnectionError):  # a client may break off
                connection.settimeout(PATIENCE)
                serve(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                thread = threading.Thread(target=handle, args=(connection,))
                listener.threads.append(thread)
                thread.start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join(PATIENCE)
            for thread in listener.threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()


def echo(connection: socket.socket) -> None:
    """Send everything back, then end."""
    while data := connection.recv(65536):
        connection.sendall(data)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the end."""
    pieces = []
    while data := connection.recv(65536):
        pieces.append(data)
    return b"".join(pieces)
