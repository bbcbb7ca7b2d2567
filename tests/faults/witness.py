"""A program for a sandbox: echoes what it is sent, over plain TCP and over HTTP, and remembers how each exchange ended.

It is given to a sandbox as text, and says its two ports, first that of the plain echo. What is sent to it begins with a
name of 16 bytes. `GET /` tells for each name whether it is "open", "whole" (it ended in order, with the size and the
digest of what had come) or "broken".
"""

from __future__ import annotations

import asyncio
import hashlib
import json

NAME_BYTES = 16

exchanges: dict[str, tuple[str, int, str]] = {}


class Exchange:
    """What came so far."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._head = b""
        self._size = 0
        self._whole = False

    def add(self, data: bytes) -> None:
        """Count a piece."""
        self._head = (self._head + data)[:NAME_BYTES]
        self._size += len(data)
        self._digest.update(data)
        self.tell("open")

    def tell(self, how: str) -> None:
        """Remember how it stands, once there is a name; what was whole stays so, whatever becomes of the answer."""
        if len(self._head) == NAME_BYTES and not self._whole:
            self._whole = how == "whole"
            exchanges[self._head.decode()] = (how, self._size, self._digest.hexdigest())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, and end when it ends."""
    exchange = Exchange()
    try:
        while data := await reader.read(65536):
            exchange.add(data)
            writer.write(data)
            await writer.drain()
    except OSError:
        exchange.tell("broken")
    else:
        exchange.tell("whole")
    writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request: a body by itself, in chunks if its name ends in an odd digit; no body by all exchanges."""
    exchange = Exchange()
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        left = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
        pieces = []
        while left:
            data = await reader.read(min(left, 65536))
            if not data:
                raise ConnectionAbortedError
            exchange.add(data)
            pieces.append(data)
            left -= len(data)
        exchange.tell("whole")
        body = b"".join(pieces) or json.dumps(exchanges).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")
        if body[NAME_BYTES - 1] % 2:
            writer.write(b"transfer-encoding: chunked\r\n\r\n")
            for start in range(0, len(body), 50_000):
                piece = body[start : start + 50_000]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
    except (OSError, EOFError):
        exchange.tell("broken")
    writer.close()


async def main() -> None:
    """Serve for ever."""
    servers = [await asyncio.start_server(serve, "127.0.0.1", 0) for serve in (echo, answer)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main())
