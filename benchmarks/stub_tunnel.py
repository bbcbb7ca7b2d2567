"""The stub's end of a tunnel, and the program that every port leads to: both in the thread of the connection.

The program's first byte says what to do: `e` echo, `d` send as many bytes as the next eight say, `u` take as many and
answer with one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import attrs

from sandbox_aio.protocol.tunnel import DaemonTunnel, DialRequested
from sandbox_aio.protocol.tunnel_preamble import TunnelStatus
from sandbox_aio.protocol.websocket import WebSocket, WebSocketLimits
from sandbox_aio.protocol.yamux_events import StreamData, StreamEnded, StreamWritable, YamuxLimits

if TYPE_CHECKING:
    import socket

    from sandbox_aio.protocol.upgrade import Headers

__all__ = ["serve_tunnel"]

PIECE = bytes(1 << 18)


@attrs.define
class _Stream:
    mode: bytes = b""
    head: bytes = b""
    left: int = 0


def serve_tunnel(sock: socket.socket, headers: Headers, trailing: bytes) -> None:
    """Serve a tunnel until its client goes."""
    websocket = WebSocket.accept(headers=headers, limits=WebSocketLimits(), trailing=trailing)
    tunnel = DaemonTunnel(websocket, YamuxLimits(ping_interval=None, max_frame_bytes=64 * 1024))
    streams: dict[int, _Stream] = {}
    data = b""
    while True:
        tunnel.receive_bytes(data, time.monotonic())
        for event in tunnel.events():
            if isinstance(event, DialRequested):
                streams[event.stream_id] = _Stream()
                tunnel.answer(event.stream_id, TunnelStatus.CONNECTED)
            elif isinstance(event, StreamData):
                tunnel.consume(event.stream_id, len(event.data))
                _act(tunnel, event.stream_id, streams[event.stream_id], event.data)
            elif isinstance(event, StreamWritable):
                _send(tunnel, event.stream_id, streams[event.stream_id])
            elif isinstance(event, StreamEnded):
                del streams[event.stream_id]
                tunnel.end_stream(event.stream_id)
        if out := tunnel.bytes_to_send():
            sock.sendall(b"".join(out))
        if tunnel.finished or not (data := sock.recv(1 << 18)):
            return


def _act(tunnel: DaemonTunnel, stream_id: int, stream: _Stream, data: memoryview) -> None:
    if not stream.mode:
        stream.mode, data = bytes(data[:1]), data[1:]
    if stream.mode == b"e":
        tunnel.send_data(stream_id, data)
        return
    if len(stream.head) < 8:
        missing = 8 - len(stream.head)
        stream.head, data = stream.head + bytes(data[:missing]), data[missing:]
        if len(stream.head) < 8:
            return
        stream.left = int.from_bytes(stream.head, "big")
        _send(tunnel, stream_id, stream)
    if stream.mode == b"u":
        stream.left -= len(data)
        if not stream.left:
            tunnel.send_data(stream_id, b".")


def _send(tunnel: DaemonTunnel, stream_id: int, stream: _Stream) -> None:
    while stream.mode == b"d" and stream.left and (window := tunnel.send_window(stream_id)):
        size = min(window, stream.left, len(PIECE))
        tunnel.send_data(stream_id, PIECE[:size])
        stream.left -= size
