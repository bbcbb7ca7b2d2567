"""A server that costs next to nothing, so that a benchmark measures the client.

It speaks enough of the protocol for either client to run a command: one sandbox on the control plane (wire protocol,
section 1.6), `execute/ws` (section 3) and tunnels (section 5, in `stub_tunnel.py`). Nothing is executed: the command's
text says what to send.

| command | what the stub sends between `started` and `exit` |
|---|---|
| `output COUNT SIZE` | COUNT `stdout` frames, each of SIZE bytes of log lines |
| `tiny` | one frame, and everything in one write, the closing handshake and FIN included |
| `tiny-late SECONDS` | the same, but FIN follows SECONDS after the close frame, as behind some proxies |
| `resume COUNT SIZE EVERY` | as `output`, but hangs up with 1001 after every EVERY frames (section 3.12) |
| `echo` | each `input` frame's text, until `close_stdin` |
| `idle` | nothing, until the client goes |

Run as `python -m benchmarks.stub`. It prints its port when it is ready, and ends when its standard input does.

It is made of threads that block, since nothing in Python answers sooner than a thread that waits in `accept` or `recv`,
and what the stub takes, both clients have to wait for.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from benchmarks.stub_tunnel import serve_tunnel

if TYPE_CHECKING:
    from collections.abc import Iterator

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTROL_PLANE = "/api/v2/sandboxes"
DATA_PLANE = "/data"
BACKLOG = 4096
STACK_BYTES = 256 << 10

GOING_AWAY = 1001
NORMAL = 1000

Message = dict[str, Any]


def frame(opcode: int, payload: bytes) -> bytes:
    """Return one unmasked, final websocket frame (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def text(message: Message) -> bytes:
    """Return `message` as a text frame of compact JSON."""
    return frame(1, json.dumps(message, separators=(",", ":")).encode())


def close(code: int) -> bytes:
    """Return a close frame that carries `code`."""
    return frame(8, struct.pack("!H", code))


def log_lines(size: int) -> str:
    """Return exactly `size` ASCII characters that look like a log, about 100 to a line."""
    lines = (
        f"2026-01-01T12:{n // 60 % 60:02}:{n % 60:02}.{n * 7 % 1000:03}Z INFO worker[{n % 16}] request={n:08x} "
        f"path=/v1/items/{n} status=200 took={n * 13 % 977}ms\n"
        for n in range(size // 80 + 1)
    )
    return "".join(lines)[:size]


@functools.cache
def output(count: int, size: int, first: int = 0) -> bytes:
    """Return `count` encoded `stdout` frames of `size` bytes each, the first one at `first * size`."""
    head = '{"type":"stdout","data":' + json.dumps(log_lines(size)) + ',"offset":'
    return b"".join(frame(1, f"{head}{n * size}}}".encode()) for n in range(first, first + count))


EXIT = text({"type": "exit", "exit_code": 0}) + close(NORMAL)
TINY = text({"type": "stdout", "data": "hi\n", "offset": 0}) + EXIT


class Connection:
    """One accepted socket: a control-plane request, or one attachment to a command."""

    def __init__(self, stub: Stub, sock: socket.socket) -> None:
        self._stub = stub
        self._sock = sock
        self._buffer = b""

    def serve(self) -> None:
        """Answer whatever the peer asks, then wait for it to leave.

        Raises:
            EOFError, OSError: It left early.
        """
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        request, *lines = head.split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            self._respond(request.split()[1].decode(), headers[b"host"].decode())
            return
        if request.split()[1].endswith(b"/tunnel"):
            serve_tunnel(self._sock, list(headers.items()), self._buffer)
            return
        key = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + WEBSOCKET_GUID).digest())
        self._sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n"
        )
        messages = self._messages()
        for message in messages:
            if message["type"] in ("execute", "reconnect"):
                self._command(message, messages)
                break
        for _ in messages:
            pass

    def _respond(self, path: str, host: str) -> None:
        name = path.removeprefix(f"{CONTROL_PLANE}/boxes/")
        if name == path or "/" in name:
            status, body = "404 Not Found", {"detail": {"error": "NotFound", "message": f"The stub has no {path}."}}
        else:
            status, body = "200 OK", self._stub.sandbox(name, host)
        payload = json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        self._sock.sendall(head.encode() + b"Connection: close\r\n\r\n" + payload)

    def _command(self, message: Message, messages: Iterator[Message]) -> None:
        command_id = message["command_id"]
        if message["type"] == "execute":
            self._stub.commands[command_id] = message["command"]
        verb, *numbers = self._stub.commands[command_id].split()
        started = text({"type": "started", "command_id": command_id, "pid": 1})
        match verb, [float(number) for number in numbers]:
            case "output", [count, size]:
                self._sock.sendall(started)
                self._sock.sendall(output(int(count), int(size)))
                self._finish(EXIT)
            case "tiny", []:
                self._finish(started + TINY)
            case "tiny-late", [seconds]:
                self._sock.sendall(started + TINY)
                time.sleep(seconds)
                self._finish(b"")
            case "resume", [count, size, every]:
                first = int(message.get("stdout_offset", 0) // size)
                last = min(first + int(every), int(count))
                self._sock.sendall(started + output(last - first, int(size), first))
                self._finish(EXIT if last == count else close(GOING_AWAY))
            case "echo", []:
                self._sock.sendall(started)
                self._echo(messages)
            case "idle", []:
                self._sock.sendall(started)
            case _:
                self._finish(text({"type": "error", "error_type": "CommandError", "error": "not in the script"}))

    def _echo(self, messages: Iterator[Message]) -> None:
        offset = 0
        for message in messages:
            if message["type"] == "input":
                self._sock.sendall(text({"type": "stdout", "data": message["data"], "offset": offset}))
                offset += len(message["data"].encode())
            elif message["type"] in ("close_stdin", "kill"):
                break
        self._finish(EXIT)

    def _finish(self, data: bytes) -> None:
        self._sock.sendall(data)
        self._sock.shutdown(socket.SHUT_WR)

    def _fill(self) -> None:
        data = self._sock.recv(1 << 16)
        if not data:
            raise EOFError
        self._buffer += data

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _messages(self) -> Iterator[Message]:
        """Yield the client's messages until its close frame; answer pings on the way."""
        while True:
            first, second = self._read(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", self._read(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", self._read(8))
            mask = self._read(4)
            masked = self._read(size)
            key = (mask * (size // 4 + 1))[:size]
            payload = (int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
            opcode = first & 0x0F
            if opcode == 1:
                yield json.loads(payload)
            elif opcode == 8:
                return
            elif opcode == 9:
                self._sock.sendall(frame(10, payload))


class Stub:
    """The listener, its threads, and the little that connections share."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._idle = 0
        self._lock = threading.Lock()
        self.port: int = listener.getsockname()[1]
        self.commands: dict[str, str] = {}

    def sandbox(self, name: str, host: str) -> Message:
        """Return the control plane's object for the one sandbox there is, under whatever name it is asked for.

        It is reached at the host that the client has named, be it that of a proxy.
        """
        return {
            "id": "00000000-0000-4000-8000-000000000000",
            "name": name,
            "status": "ready",
            "dataplane_url": f"http://{host}{DATA_PLANE}",
            "created_at": "2026-01-01T00:00:00.000Z",
            "updated_at": "2026-01-01T00:00:00.000Z",
        }

    def start_thread(self) -> None:
        """Have one more thread that accepts connections. There is always one that waits."""
        self._idle += 1
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with self._lock:
                self._idle -= 1
                if not self._idle:
                    self.start_thread()
            with sock, suppress(OSError, EOFError):  # Clients come and go as they like.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                Connection(self, sock).serve()
            with self._lock:
                self._idle += 1


def main() -> None:
    """Serve on a port of the system's choice until standard input ends."""
    threading.stack_size(STACK_BYTES)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        stub = Stub(listener)
        stub.start_thread()
        print(stub.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
