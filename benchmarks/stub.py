"""A server that costs next to nothing, so that a benchmark measures the client.

It speaks enough of the protocol for either client to run a command: one sandbox on the control plane (wire protocol,
section 1.6) and `execute/ws` (section 3). Nothing is executed: the command's text says what to send.

| command | what the stub sends between `started` and `exit` |
|---|---|
| `output COUNT SIZE` | COUNT `stdout` frames, each of SIZE bytes of log lines |
| `tiny` | one frame, and everything in one write, the closing handshake and FIN included |
| `tiny-late SECONDS` | the same, but FIN follows SECONDS after the close frame, as behind some proxies |
| `resume COUNT SIZE EVERY` | as `output`, but hangs up with 1001 after every EVERY frames (section 3.12) |
| `echo` | each `input` frame's text, until `close_stdin` |
| `idle` | nothing, until the client goes |

Run as `python -m benchmarks.stub`. It prints its port when it is ready, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTROL_PLANE = "/api/v2/sandboxes"
DATA_PLANE = "/data"
SEND_SIZE = 1 << 20
"""How many bytes are handed to the kernel at a time."""

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

    def __init__(self, server: Stub, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    async def serve(self) -> None:
        """Answer whatever the peer asks, then wait for it to leave."""
        try:
            await self._serve()
        except (OSError, asyncio.IncompleteReadError):
            return  # Clients come and go; what that costs is theirs to measure.
        finally:
            self._sock.close()

    async def _serve(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            await self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        request, *lines = head.split(b"\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        path = request.split()[1].decode()
        if headers.get(b"upgrade", b"").lower() != b"websocket":
            await self._respond(path)
            return
        key = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + WEBSOCKET_GUID).digest())
        await self._send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n"
        )
        messages = self._messages()
        async for message in messages:
            if message["type"] in ("execute", "reconnect"):
                await self._command(message, messages)
                break
        async for _ in messages:
            pass

    async def _respond(self, path: str) -> None:
        name = path.removeprefix(f"{CONTROL_PLANE}/boxes/")
        if name == path or "/" in name:
            status, body = "404 Not Found", {"detail": {"error": "NotFound", "message": f"The stub has no {path}."}}
        else:
            status, body = "200 OK", self._server.sandbox(name)
        payload = json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        await self._send(head.encode() + b"Connection: close\r\n\r\n" + payload)

    async def _command(self, message: Message, messages: AsyncIterator[Message]) -> None:
        command_id = message["command_id"]
        if message["type"] == "execute":
            self._server.commands[command_id] = message["command"]
        verb, *numbers = self._server.commands[command_id].split()
        started = text({"type": "started", "command_id": command_id, "pid": 1})
        match verb, [float(number) for number in numbers]:
            case "output", [count, size]:
                await self._send(started)
                await self._send(output(int(count), int(size)))
                await self._finish(EXIT)
            case "tiny", []:
                await self._finish(started + TINY)
            case "tiny-late", [seconds]:
                await self._send(started + TINY)
                await asyncio.sleep(seconds)
                self._sock.shutdown(socket.SHUT_WR)
            case "resume", [count, size, every]:
                first = int(message.get("stdout_offset", 0) // size)
                last = min(first + int(every), int(count))
                await self._send(started + output(last - first, int(size), first))
                await self._finish(EXIT if last == count else close(GOING_AWAY))
            case "echo", []:
                await self._send(started)
                await self._echo(messages)
            case "idle", []:
                await self._send(started)
            case _:
                await self._finish(text({"type": "error", "error_type": "CommandError", "error": "not in the script"}))

    async def _echo(self, messages: AsyncIterator[Message]) -> None:
        offset = 0
        async for message in messages:
            if message["type"] == "input":
                await self._send(text({"type": "stdout", "data": message["data"], "offset": offset}))
                offset += len(message["data"].encode())
            elif message["type"] in ("close_stdin", "kill"):
                break
        await self._finish(EXIT)

    async def _finish(self, data: bytes) -> None:
        await self._send(data)
        self._sock.shutdown(socket.SHUT_WR)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), SEND_SIZE):
            await self._loop.sock_sendall(self._sock, view[start : start + SEND_SIZE])

    async def _fill(self) -> None:
        data = await self._loop.sock_recv(self._sock, 1 << 16)
        if not data:
            raise asyncio.IncompleteReadError(self._buffer, None)
        self._buffer += data

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    async def _messages(self) -> AsyncIterator[Message]:
        """Yield the client's messages until its close frame or the end of the stream; answer pings on the way."""
        while True:
            first, second = await self._read(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self._read(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self._read(8))
            mask = await self._read(4)
            masked = await self._read(size)
            key = (mask * (size // 4 + 1))[:size]
            payload = (int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
            opcode = first & 0x0F
            if opcode == 1:
                yield json.loads(payload)
            elif opcode == 8:
                return
            elif opcode == 9:
                await self._send(frame(10, payload))


class Stub:
    """The listener, and the little that connections share."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.port: int = listener.getsockname()[1]
        self.commands: dict[str, str] = {}

    def sandbox(self, name: str) -> Message:
        """Return the control plane's object for the one sandbox there is, under whatever name it is asked for."""
        return {
            "id": "00000000-0000-4000-8000-000000000000",
            "name": name,
            "status": "ready",
            "dataplane_url": f"http://127.0.0.1:{self.port}{DATA_PLANE}",
            "created_at": "2026-01-01T00:00:00.000Z",
            "updated_at": "2026-01-01T00:00:00.000Z",
        }

    async def serve(self) -> None:
        """Accept connections for ever."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(Connection(self, sock).serve())
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def main() -> None:
    """Serve on a port of the system's choice until standard input ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        listener.setblocking(False)
        stub = Stub(listener)
        serving = asyncio.create_task(stub.serve())
        print(stub.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        serving.cancel()


if __name__ == "__main__":
    asyncio.run(main())
