"""Websockets to services: messages both ways, ends of every kind, and tokens."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import attrs
import pytest
from anyio.abc import SocketStream

from sandbox_aio import (
    AsyncServiceURL,
    LocalProtocolError,
    RemoteProtocolError,
    SandboxAuthenticationError,
    SandboxConnectionError,
)
from sandbox_aio.client.service_url import TokenSource
from sandbox_aio.drivers.http_pool import HttpPool
from sandbox_aio.protocol.service_requests import ServiceURLRecord, ServiceWish
from sandbox_aio.protocol.websocket import Closed, WebSocket, WebSocketLimits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable


pytestmark = pytest.mark.anyio


@attrs.define(eq=False)
class Peer:
    """The service's end of one websocket."""

    stream: SocketStream
    websocket: WebSocket
    target: str
    headers: dict[str, str]
    events: list[bytes | Closed] = attrs.field(factory=list)

    async def send(self, *messages: str | bytes) -> None:
        for message in messages:
            if isinstance(message, str):
                self.websocket.send_text(message)
            else:
                self.websocket.send_binary(message)
        await self.flush()

    async def flush(self) -> None:
        if out := b"".join(self.websocket.bytes_to_send()):
            await self.stream.send(out)

    async def next(self) -> bytes | Closed:
        """What comes next."""
        while not self.events:
            try:
                self.websocket.receive_bytes(await self.stream.receive(), anyio.current_time())
            except anyio.EndOfStream:
                self.websocket.receive_eof(anyio.current_time())
            for event in self.websocket.events():
                assert isinstance(event, bytes | memoryview | Closed)
                self.events.append(event if isinstance(event, Closed) else bytes(event))
            await self.flush()
        return self.events.pop(0)

    async def all(self) -> list[bytes | Closed]:
        """All that comes, until it is closed."""
        found = [await self.next()]
        while not isinstance(found[-1], Closed):
            found.append(await self.next())
        return found


async def echo(peer: Peer) -> None:
    while not isinstance(message := await peer.next(), Closed):
        await peer.send(message)


@asynccontextmanager
async def service(
    talk: Callable[[Peer], Awaitable[None]] = echo, refuse: Callable[[str], bytes | None] = lambda _: None
) -> AsyncGenerator[str]:
    """Accept websockets, unless `refuse` has an answer for the token; gives the service's URL."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            request, *lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            fields = [(line.partition(": ")[0].lower(), line.partition(": ")[2]) for line in lines]
            headers = dict(fields)
            if (answer := refuse(headers["x-langsmith-sandbox-service-token"])) is not None:
                await stream.send(answer)
                return
            websocket = WebSocket.accept(
                headers=[(name.encode(), value.encode()) for name, value in fields],
                limits=WebSocketLimits(ping_interval=0.01),
            )
            peer = Peer(stream, websocket, request.split()[1], headers)
            await peer.flush()
            await talk(peer)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield f"http://127.0.0.1:{port}/svc/box/80/"
            tasks.cancel_scope.cancel()


def url_of(address: str) -> AsyncServiceURL:
    return AsyncServiceURL("http://b", address, "own", "never")


def refusal(status: int, body: bytes = b'{"detail": {"error": "X", "message": "because"}}') -> bytes:
    return b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


async def test_messages_both_ways() -> None:
    async with service() as address, url_of(address).websocket("/ws?a=b", headers={"x-own": "1"}) as websocket:
        for message in ("tä", b"\x00\xff", "", b"x" * 1_000_000):
            await websocket.send(message)
            assert await websocket.receive() == (message.encode() if isinstance(message, str) else message)


async def test_what_is_sent_first() -> None:
    seen: list[Any] = []

    async def talk(peer: Peer) -> None:
        seen.append((peer.target, peer.headers["x-own"], peer.headers["x-langsmith-sandbox-service-token"]))
        await peer.send("one", "two")
        peer.websocket.close(anyio.current_time(), 1000)
        await peer.flush()
        seen.extend(await peer.all())

    async with service(talk) as address:
        async with url_of(address).websocket("ws?a=b", headers={"x-own": "1"}) as websocket:
            assert [message async for message in websocket] == [b"one", b"two"]
            assert await websocket.receive() is None
            with pytest.raises(SandboxConnectionError, match="closed"):
                await websocket.send("x")
        with anyio.fail_after(5):
            while len(seen) < 2:
                await anyio.sleep(0.01)
    assert seen[0] == ("/svc/box/80/ws?a=b", "1", "own")
    assert (seen[1].code, seen[1].violation) == (1000, False)


async def test_a_goodbye_is_said() -> None:
    seen: list[Any] = []
    over = anyio.Event()

    async def talk(peer: Peer) -> None:
        await peer.send("unread")
        seen.extend(await peer.all())
        over.set()

    async with service(talk) as address:
        websocket = await url_of(address).websocket()
        await websocket.send("last")
        await websocket.aclose()
        await websocket.aclose()
        with anyio.fail_after(5):
            await over.wait()
        with pytest.raises(SandboxConnectionError):
            await websocket.receive()
    assert (seen[0], seen[1].code) == (b"last", 1000)


async def test_one_that_is_closed_while_somebody_receives() -> None:
    async with service() as address:
        websocket = await url_of(address).websocket()
        errors = []

        async def receive() -> None:
            try:
                await websocket.receive()
            except SandboxConnectionError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(LocalProtocolError, match="another task"):
                await websocket.receive()
            await websocket.aclose()
        assert len(errors) == 1


@pytest.mark.parametrize(
    ("last", "error", "words"),
    [
        (b"\x88\x06\x0f\xa0work", SandboxConnectionError, "4000: work"),
        (b"", SandboxConnectionError, "1006"),
        (b"\x81\x05he", SandboxConnectionError, "1006"),
        (b"\xff\x00", RemoteProtocolError, "1002"),
        (b"\x82\x7f\x00\x00\x00\x00\x7f\xff\xff\xff", RemoteProtocolError, "1009"),
    ],
)
async def test_an_end_that_is_not_good(last: bytes, error: type[Exception], words: str) -> None:
    async def talk(peer: Peer) -> None:
        await peer.stream.send(b"\x81\x01a" + last)

    async with service(talk) as address, url_of(address).websocket() as websocket:
        assert await websocket.receive() == b"a"
        with pytest.raises(error, match=words):
            await websocket.receive()


async def test_pings_are_answered_while_somebody_receives() -> None:
    answered = 0

    async def talk(peer: Peer) -> None:
        nonlocal answered
        for _ in range(3):
            await peer.stream.send(b"\x89\x02hi")
            answer = await peer.stream.receive()
            assert (answer[0], answer[1] & 0x7F) == (0x8A, 2)
            answered += 1
        await peer.send("done")

    async with service(talk) as address, url_of(address).websocket() as websocket:
        assert await websocket.receive() == b"done"
    assert answered == 3


async def test_both_ends_may_send_much_at_once() -> None:
    """Neither waits for the other to read: pongs that come while a send is stuck wait for their turn."""
    size, count = 100_000, 40

    async def talk(peer: Peer) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood, peer)
            for _ in range(count):
                assert await peer.next() == bytes(size)
            await finished.wait()
            await peer.send("thanks")

    async def flood(peer: Peer) -> None:
        for _ in range(count):
            await peer.stream.send(b"\x89\x02hi" + b"\x82\x7e\xff\xff" + bytes(65535))
        finished.set()

    finished = anyio.Event()
    async with service(talk) as address, url_of(address).websocket() as websocket:

        async def send() -> None:
            for _ in range(count):
                await websocket.send(bytes(size))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            with anyio.fail_after(20):
                for _ in range(count):
                    message = await websocket.receive()
                    assert message is not None and len(message) == 65535
                assert await websocket.receive() == b"thanks"


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, SandboxAuthenticationError), (403, SandboxAuthenticationError), (502, SandboxConnectionError)],
)
async def test_a_service_that_refuses(status: int, error: type[Exception]) -> None:
    async with service(refuse=lambda _: refusal(status)) as address:
        with pytest.raises(error, match=f"answered {status} instead of a websocket: because"):
            await url_of(address).websocket()


async def test_a_refused_token_is_replaced_once() -> None:
    tokens = iter(("old", "new", "newest"))

    async with service(refuse=lambda token: None if token == good else refusal(401)) as address:

        async def fetch() -> ServiceURLRecord:
            return ServiceURLRecord(browser_url="b", service_url=address, token=next(tokens), expires_at="")

        source = TokenSource(ServiceWish(port=80), fetch)
        url = AsyncServiceURL._of(source, await source.current(), pool=HttpPool(), max_retries=0)
        source._made -= 100
        good = "new"
        async with url.websocket() as websocket:
            await websocket.send("x")
            assert await websocket.receive() == b"x"
        good, source._made = "none", source._made - 100
        with pytest.raises(SandboxAuthenticationError):
            await url.websocket()
        assert url.token == "newest"


async def test_what_cannot_be_opened() -> None:
    async with service() as address:
        url = url_of(address)
        with pytest.raises(ValueError, match="leads out"):
            await url.websocket("../81/")
        with pytest.raises(ValueError, match="header"):
            await url.websocket(headers={"a b": "c"})
        pending = url.websocket()
        async with pending:
            pass
        with pytest.raises(LocalProtocolError, match="opened already"):
            await pending
    with pytest.raises(SandboxConnectionError):
        await url.websocket()


async def test_a_service_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_aio.drivers.service_websocket.OPEN_SECONDS", 0.05)
    monkeypatch.setattr("sandbox_aio.drivers.service_websocket.CLOSE_SECONDS", 0.05)
    silent = anyio.Event()

    async def serve(stream: SocketStream) -> None:
        async with stream:
            await silent.wait()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            with pytest.raises(SandboxConnectionError, match=r"within 0\.05 s"):
                await url_of(f"http://127.0.0.1:{port}/").websocket()
            tasks.cancel_scope.cancel()

    async def deaf(peer: Peer) -> None:
        await silent.wait()

    async with service(deaf) as address:
        websocket = await url_of(address).websocket()
        with anyio.fail_after(5):
            await websocket.aclose()
        silent.set()
