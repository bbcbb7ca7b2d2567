"""What becomes of a connection after 101."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.server import router as router_module
from sandbox_aio.server import splice as splice_module
from sandbox_aio.server.splice import FrameFollower, close_frame, text_frame
from tests.server.fakes import Daemon, FakeRuntime, RawClient
from tests.server.test_router import head

if TYPE_CHECKING:
    import h11
    import httpx

    from sandbox_aio.server.serve import Ready, Server

pytestmark = pytest.mark.anyio

UPGRADE = (
    "connection: Upgrade",
    "upgrade: websocket",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version: 13",
    "sec-websocket-extensions: permessage-deflate",
)


def frame(payload: bytes, *, opcode: int = 1, final: bool = True, masked: bool = False) -> bytes:
    """A websocket frame in the shortest form."""
    size = len(payload)
    first = (0x80 if final else 0) | opcode
    mask = 0x80 if masked else 0
    if size < 126:
        prefix = bytes((first, mask | size))
    elif size < 65536:
        prefix = bytes((first, mask | 126)) + size.to_bytes(2, "big")
    else:
        prefix = bytes((first, mask | 127)) + size.to_bytes(8, "big")
    return prefix + (b"mask" if masked else b"") + payload


frames = st.builds(
    frame,
    st.one_of(st.binary(max_size=200), st.integers(65530, 65540).map(bytes)),
    opcode=st.sampled_from((0, 1, 2, 9)),
    final=st.booleans(),
    masked=st.booleans(),
)


@given(st.lists(frames, max_size=6), st.lists(st.integers(0, 2**17), max_size=8))
def test_boundaries_are_found_however_the_bytes_are_cut(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(sent)
    ends = {0}
    for one in sent:
        ends.add(max(ends) + len(one))
    positions = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    follower = FrameFollower()
    for start, end in itertools.pairwise(positions):
        # A second follower stops here: it names the first boundary after `start` if it is in this piece.
        if not follower.at_boundary:
            other = FrameFollower()
            other.advance(stream[:start])
            following = min(boundary for boundary in ends if boundary > start)
            found = other.advance_to_boundary(stream[start:end])
            assert found == (following - start if following <= end else None)
            assert other.at_boundary == (following <= end)
        follower.advance(stream[start:end])
        assert follower.at_boundary == (end in ends)


def test_a_message_in_fragments_is_noticed() -> None:
    follower = FrameFollower()
    for data, in_message in [
        (frame(b"a", final=False), True),
        (frame(b"", opcode=9), True),
        (frame(b"b", opcode=0, final=False), True),
        (frame(b"c", opcode=0), False),
    ]:
        follower.advance(data)
        assert follower.in_message is in_message


class WebsocketDaemon:
    """Answers 101 on a daemon's connections, and lets a test read and write them."""

    def __init__(self, daemon: Daemon) -> None:
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.heads: list[dict[bytes, bytes]] = []
        self.first = b""
        self.done = asyncio.Event()
        daemon.answer = self._answer

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: h11.Connection, request: h11.Request
    ) -> None:
        self.heads.append(dict(request.headers))
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n" + self.first
        )
        self.accepted.put_nowait((reader, writer))
        await self.done.wait()


@pytest.fixture
async def websocket(http: httpx.AsyncClient, runtime: FakeRuntime) -> WebsocketDaemon:
    box = (await http.post("/boxes", json={"name": "one"})).json()
    return WebsocketDaemon(runtime.daemons[box["id"]])


async def upgraded(client: RawClient, path: str = "/v2/sandboxes/one/execute/ws", after: bytes = b"") -> bytes:
    status, headers, first = await client.ask(head("GET", path, *UPGRADE) + after)
    assert status == 101
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    return first


async def test_bytes_pass_both_ways_also_those_sent_early(ready: Ready, websocket: WebsocketDaemon) -> None:
    websocket.first = b"early from the daemon"
    async with RawClient.connect(ready.url) as client:
        first = await upgraded(client, after=b"early from the client")
        reader, writer = await websocket.accepted.get()
        assert await reader.readexactly(21) == b"early from the client"
        if len(first) < 21:
            first += await client.reader.readexactly(21 - len(first))
        assert first == b"early from the daemon"
        for number in range(100):
            client.writer.write(b"%3d" % number)
            assert await reader.readexactly(3) == b"%3d" % number
            writer.write(b"%3d" % number)
            assert await client.reader.readexactly(3) == b"%3d" % number
    (seen,) = websocket.heads
    assert seen[b"upgrade"] == b"websocket"
    assert seen[b"sec-websocket-key"] == b"dGhlIHNhbXBsZSBub25jZQ=="
    assert not {b"sec-websocket-extensions", b"x-api-key"} & seen.keys()
    assert b"x-sandbox-secret" in seen
    websocket.done.set()


async def test_a_refused_upgrade_is_an_answer_like_any_other(
    ready: Ready, http: httpx.AsyncClient, runtime: FakeRuntime
) -> None:
    await http.post("/boxes", json={"name": "one"})
    async with RawClient.connect(ready.url) as client:
        for _ in range(2):
            status, _, body = await client.ask(head("GET", "/v2/sandboxes/one/execute/ws", *UPGRADE))
            assert (status, body) == (200, b"one GET /execute/ws")
        unauthorized = await client.ask(head("GET", "/v2/sandboxes/one/execute/ws", *UPGRADE, key="no"))
        assert unauthorized[0] == 401
        assert (await client.ask(head("GET", "/v2/sandboxes/none/execute/ws", *UPGRADE)))[0] == 404


Ending = "Callable[[asyncio.StreamWriter], object]"


@pytest.mark.parametrize("abrupt", [False, True])
async def test_the_clients_end_reaches_the_daemon_at_once(
    ready: Ready, websocket: WebsocketDaemon, abrupt: bool
) -> None:
    async with RawClient.connect(ready.url) as client:
        await upgraded(client)
        reader, writer = await websocket.accepted.get()
        client.writer.write(b"last words")
        assert await reader.readexactly(10) == b"last words"
        if abrupt:
            client.writer.transport.abort()
            assert await asyncio.wait_for(reader.read(), 5) == b""
        else:
            client.writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.write(b"still here")  # Half-closed: the other half goes on.
            assert await client.reader.readexactly(10) == b"still here"
    websocket.done.set()


@pytest.mark.parametrize("abrupt", [False, True])
async def test_the_daemons_end_reaches_the_client_at_once(
    ready: Ready, websocket: WebsocketDaemon, abrupt: bool
) -> None:
    async with RawClient.connect(ready.url) as client:
        await upgraded(client)
        reader, writer = await websocket.accepted.get()
        writer.write(frame(b"last words"))
        if abrupt:
            websocket.done.set()
        else:
            writer.write_eof()
        assert await client.reader.readexactly(12) == frame(b"last words")
        assert await asyncio.wait_for(client.reader.read(), 5) == b""
        if not abrupt:
            client.writer.write(b"still here")
            assert await reader.readexactly(10) == b"still here"
    websocket.done.set()


async def test_a_daemon_that_stays_in_a_frame_holds_up_no_delete(
    http: httpx.AsyncClient, ready: Ready, websocket: WebsocketDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_module, "FAREWELL_TIMEOUT", 0.01)
    async with RawClient.connect(ready.url) as client:
        await upgraded(client)
        _, writer = await websocket.accepted.get()
        writer.write(frame(b"x" * 1000)[:10])
        assert await client.reader.readexactly(10)
        assert (await http.delete("/boxes/one")).status_code == 204
        assert await client.ended()
    websocket.done.set()


async def test_a_client_that_lingers_after_the_daemons_end_is_cut_off(
    ready: Ready, websocket: WebsocketDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice_module, "HALF_CLOSED_TIMEOUT", 0.05)
    async with RawClient.connect(ready.url) as client:
        await upgraded(client)
        await websocket.accepted.get()
        websocket.done.set()
        assert await client.reader.read() == b""
        while client.writer.is_closing() is False:
            client.writer.write(b"x")
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_back_pressure_stops_the_sender(ready: Ready, websocket: WebsocketDaemon, direction: str) -> None:
    async with RawClient.connect(ready.url) as client:
        await upgraded(client)
        reader, writer = await websocket.accepted.get()
        source, sink = (client.writer, reader) if direction == "up" else (writer, client.reader)
        sent = 0
        piece = frame(bytes(2**16))
        while True:
            source.write(piece)
            sent += len(piece)
            try:
                await asyncio.wait_for(source.drain(), 0.3)
            except TimeoutError:
                break
            assert sent < 64 * 2**20, "the sender was never stopped"
        assert await asyncio.wait_for(sink.readexactly(sent), 10) == piece * (sent // len(piece))
        source.write(b"and on")
        assert await asyncio.wait_for(sink.readexactly(6), 5) == b"and on"
    websocket.done.set()


async def shut_down(server: Server) -> asyncio.Task[None]:
    task = asyncio.create_task(server.router.aclose(grace=5))
    while not server.router._closing:
        await asyncio.sleep(0)
    return task


async def test_at_shutdown_1001_comes_between_two_frames(
    server: Server, ready: Ready, websocket: WebsocketDaemon
) -> None:
    async with RawClient.connect(ready.url) as client, RawClient.connect(ready.url) as other:
        await upgraded(client)
        reader, writer = await websocket.accepted.get()
        await upgraded(other)
        _, other_writer = await websocket.accepted.get()
        whole = frame(b"x" * 70_000)
        writer.write(frame(b"one") + whole[:1000])
        other_writer.write(frame(b"two"))
        assert await client.reader.readexactly(5 + 1000) == frame(b"one") + whole[:1000]
        assert await other.reader.readexactly(5) == frame(b"two")
        closing = await shut_down(server)
        # The one that is between frames is told at once, the other when its frame is over; what follows is dropped.
        assert await asyncio.wait_for(other.reader.read(), 5) == close_frame(1001)
        other.writer.close()
        writer.write(whole[1000:5000])
        assert await client.reader.readexactly(4000) == whole[1000:5000]
        writer.write(whole[5000:] + frame(b"never seen"))
        assert await asyncio.wait_for(client.reader.read(), 5) == whole[5000:] + close_frame(1001)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        client.writer.close()
        await asyncio.wait_for(closing, 1)
    websocket.done.set()


async def test_at_shutdown_a_frame_that_never_ends_is_cut_off(
    server: Server, ready: Ready, websocket: WebsocketDaemon
) -> None:
    async with RawClient.connect(ready.url) as client:
        await upgraded(client)
        _, writer = await websocket.accepted.get()
        writer.write(frame(b"x" * 1000)[:10])
        assert await client.reader.readexactly(10)
        await server.router.aclose(grace=0.05)
        assert await client.ended()
    websocket.done.set()


@pytest.mark.parametrize(
    ("action", "path", "last"),
    [
        (
            "stop",
            "/execute/ws",
            text_frame('{"type": "error", "error_type": "CommandError", "error": "sandbox stopped"}')
            + close_frame(1000),
        ),
        ("stop", "/tunnel", close_frame(1001)),
        (
            "delete",
            "/execute/ws",
            text_frame('{"type": "error", "error_type": "CommandError", "error": "sandbox deleted"}')
            + close_frame(1000),
        ),
        ("delete", "/tunnel", close_frame(1000)),
    ],
)
async def test_those_attached_hear_why_a_sandbox_goes(
    http: httpx.AsyncClient, ready: Ready, websocket: WebsocketDaemon, action: str, path: str, last: bytes
) -> None:
    async with RawClient.connect(ready.url) as client:
        await upgraded(client, "/v2/sandboxes/one" + path)
        await websocket.accepted.get()
        asked = http.delete("/boxes/one") if action == "delete" else http.post("/boxes/one/stop")
        assert (await asked).status_code == 204
        assert await asyncio.wait_for(client.reader.read(), 5) == last
    websocket.done.set()


async def test_a_sandbox_goes_while_a_client_lingers_after_its_last_frame(
    http: httpx.AsyncClient, ready: Ready, websocket: WebsocketDaemon
) -> None:
    async with RawClient.connect(ready.url) as client:
        await upgraded(client)
        _, writer = await websocket.accepted.get()
        writer.write(close_frame(1000))
        writer.write_eof()
        assert await asyncio.wait_for(client.reader.read(), 5) == close_frame(1000)
        assert (await http.delete("/boxes/one")).status_code == 204
    websocket.done.set()
