"""Files of a sandbox: whole, in part, and streamed; through cuts, changes and cancellations."""

from __future__ import annotations

import io
import os
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import pytest

from sandbox_aio import (
    AsyncSandbox,
    AsyncSandboxClient,
    DataplaneNotConfiguredError,
    FileChunk,
    FileStat,
    RequestTimeoutError,
    ResourceNotFoundError,
    SandboxConnectionError,
    SandboxNotReadyError,
    SandboxOperationError,
)
from tests.client.fake_files import FakeFiles
from tests.client.fake_service import Handler, Reply, Request, error, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

BIG = bytes(range(256)) * 4096  # 1 MiB
SOON = {"retry-after": "0"}


@asynccontextmanager
async def sandbox_at(handler: Handler) -> AsyncGenerator[AsyncSandbox]:
    """A sandbox whose data plane is the handler."""
    async with fake_service(handler) as service, AsyncSandboxClient(api_endpoint=service.url) as client:
        yield AsyncSandbox.from_dict({"name": "box", "dataplane_url": f"{service.url}/d/"}, client)


async def test_write_and_read() -> None:
    files = FakeFiles()
    async with sandbox_at(files) as sandbox:
        await sandbox.write("/a b/é", "héllo\n")
        await sandbox.write("/bin", b"\x00\xff\r\n--")
        assert files.uploads[0].target == "/d/upload?path=%2Fa+b%2F%C3%A9"
        assert files.files == {"/a b/é": "héllo\n".encode(), "/bin": b"\x00\xff\r\n--"}
        assert await sandbox.read("/bin") == b"\x00\xff\r\n--"
        await sandbox.write("/empty", b"")
        assert await sandbox.read("/empty") == b""


async def test_a_large_write_is_streamed() -> None:
    files = FakeFiles()
    async with sandbox_at(files) as sandbox:
        await sandbox.write("/big", BIG)
        assert files.files["/big"] == BIG
        assert files.uploads[0].headers["content-length"] == str(len(files.uploads[0].body))
        assert await sandbox.read("/big") == BIG


async def test_what_is_not_there() -> None:
    async with sandbox_at(FakeFiles()) as sandbox:
        for attempt in (
            sandbox.read("/x"),
            sandbox.stat("/x"),
            sandbox.read_range("/x", start=0),
            sandbox.glob("*", "/x"),
            sandbox.ls("/x"),
            sandbox.grep("a", "/x"),
        ):
            with pytest.raises(ResourceNotFoundError, match="there is no '/x' in sandbox 'box'") as caught:
                await attempt
            assert caught.value.resource_type == "file"


async def test_stat_and_ranges() -> None:
    files = FakeFiles()
    async with sandbox_at(files) as sandbox:
        await sandbox.write("/a", "0123456789")
        stat = await sandbox.stat("/a")
        assert stat == FileStat(10, stat.etag, "then", None)
        tag = stat.etag
        part = await sandbox.read_range("/a", start=2, end=4)
        assert part == FileChunk(b"234", tag, 10, 2, True, last_modified="then")
        assert (await sandbox.read_range("/a", suffix_bytes=3)).content == b"789"
        assert (await sandbox.read_range("/a", start=8, if_range=tag)).content == b"89"
        assert (await sandbox.read_range("/a", start=8, if_range='"other"')).content == b"0123456789"
        assert (await sandbox.read_range("/a", start=0, if_none_match=tag)).unchanged
        with pytest.raises(SandboxOperationError, match=r"Content-Range: bytes \*/10"):
            await sandbox.read_range("/a", start=10)


async def test_reading_goes_on_where_the_connection_broke() -> None:
    files = FakeFiles()
    files.files["/a"] = BIG
    files.cuts = [100_000, 0, 1, 65536]
    async with sandbox_at(files) as sandbox:
        assert await sandbox.read("/a") == BIG


async def test_a_file_that_changes_meanwhile_is_never_joined(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"before")

    class Changing(FakeFiles):
        async def __call__(self, request: Request) -> Reply:
            reply = await super().__call__(request)
            self.files["/a"] = BIG[::-1]
            return reply

    files = Changing()
    files.files["/a"] = BIG
    files.cuts = [1000]
    async with sandbox_at(files) as sandbox:
        with pytest.raises(SandboxOperationError, match="changed while it was downloaded"):
            await sandbox.download("/a", target)
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


async def test_without_an_etag_a_cut_is_an_error() -> None:
    files = FakeFiles()
    files.files["/a"], files.etags, files.cuts = BIG, False, [1000]
    async with sandbox_at(files) as sandbox:
        with pytest.raises(SandboxConnectionError, match="was cut off"):
            await sandbox.read("/a")


async def test_cut_for_ever_it_gives_up() -> None:
    files = FakeFiles()
    files.files["/a"], files.cuts = BIG, [10, 0, 0, 0, 0, 0, 0]
    async with sandbox_at(files) as sandbox:
        with pytest.raises(SandboxConnectionError, match="was cut off"):
            await sandbox.read("/a")


async def test_a_long_error_is_read_only_at_its_beginning() -> None:
    files = FakeFiles()
    files.refusals = [Reply(status=404, body=b"<html>" + bytes(1_000_000))]
    async with sandbox_at(files) as sandbox:
        with pytest.raises(ResourceNotFoundError, match="there is no '/a'"):
            await sandbox.read("/a")
        await sandbox.write("/a", "x")
        assert await sandbox.read("/a") == b"x"


async def test_a_busy_server_is_asked_again() -> None:
    files = FakeFiles()
    files.files["/a"], files.refusals = b"abc", [error(503, **SOON), error(429, **SOON)]
    async with sandbox_at(files) as sandbox:
        assert await sandbox.read("/a") == b"abc"
        files.refusals = [error(503, **SOON)]
        await sandbox.upload("/b", b"abc")
        assert files.files["/b"] == b"abc"
        files.refusals = [error(503, "ServiceUnavailable", **SOON)] * 4
        with pytest.raises(SandboxNotReadyError):
            await sandbox.read("/a")


async def pieces() -> AsyncIterator[bytes]:
    for start in range(0, len(BIG), 100_000):
        yield BIG[start : start + 100_000]


def sync_pieces() -> Iterator[bytes]:
    yield b"abc"
    yield b"def"


class Pieces:
    """An async iterable that is no generator."""

    def __init__(self) -> None:
        self._left = [b"abc", b"", b"def"]

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


async def test_upload_takes_many_sources(tmp_path: Path) -> None:
    local = tmp_path / "big"
    local.write_bytes(BIG)
    files = FakeFiles()
    async with sandbox_at(files) as sandbox:
        for source in (local, str(local), BIG, bytearray(BIG), memoryview(BIG), io.BytesIO(BIG), pieces()):
            files.files.clear()
            await sandbox.upload("/a", source)
            assert files.files["/a"] == BIG, source
        with local.open("rb") as file:
            await sandbox.upload("/a", file)
        assert files.files["/a"] == BIG
        assert "content-length" not in files.uploads[-1].headers, "chunked"
        for few in (sync_pieces(), Pieces(), [b"abc", b"", b"def"]):
            files.files.clear()
            await sandbox.upload("/a", few)
            assert files.files["/a"] == b"abcdef"
        with pytest.raises(TypeError, match="cannot upload a int"):
            await sandbox.upload("/a", 3)  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            await sandbox.upload("/a", tmp_path / "missing")


async def test_what_can_be_read_only_once_is_sent_only_once() -> None:
    files = FakeFiles()
    files.refusals = [error(503, "WriteError", **SOON)]
    async with sandbox_at(files) as sandbox:
        with pytest.raises(SandboxOperationError):
            await sandbox.upload("/a", pieces())
        assert files.files == {}


async def test_a_source_s_exception_is_the_callers() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"abc"
        raise ZeroDivisionError

    files = FakeFiles()
    async with sandbox_at(files) as sandbox:
        with pytest.raises(ZeroDivisionError):
            await sandbox.upload("/a", broken())
        await sandbox.upload("/a", b"x")
        assert files.files == {"/a": b"x"}


async def test_download_to_a_path_or_a_file(tmp_path: Path) -> None:
    files = FakeFiles()
    files.files["/a"], files.cuts = BIG, [70_000]
    async with sandbox_at(files) as sandbox:
        assert await sandbox.download("/a", tmp_path / "a") == len(BIG)
        assert (tmp_path / "a").read_bytes() == BIG
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()
        buffer = io.BytesIO()
        await sandbox.download("/a", buffer)
        assert buffer.getvalue() == BIG
        with pytest.raises(ResourceNotFoundError):
            await sandbox.download("/x", tmp_path / "x")
        with pytest.raises(FileNotFoundError):
            await sandbox.download("/a", tmp_path / "missing" / "a")
        assert os.listdir(tmp_path) == ["a"]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


async def test_a_cancelled_download_leaves_no_file(tmp_path: Path) -> None:
    sent = anyio.Event()

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
            sent.set()
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as server:
        server.start_soon(listener.serve, serve)
        url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        async with AsyncSandboxClient(api_endpoint=url) as client:
            sandbox = AsyncSandbox.from_dict({"name": "box", "dataplane_url": url}, client)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sandbox.download, "/a", tmp_path / "a")
                await sent.wait()
                tasks.cancel_scope.cancel()
            assert os.listdir(tmp_path) == []
            with pytest.raises(RequestTimeoutError):
                await sandbox.read("/a", timeout=0.1)
        server.cancel_scope.cancel()


async def test_streaming_needs_little_memory(tmp_path: Path) -> None:
    """32 MiB through a client that may hold 8 MiB. The server here keeps nothing."""
    size = 32 * 1024 * 1024
    seen = 0

    async def serve(stream: anyio.abc.SocketStream) -> None:
        nonlocal seen
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            if head.startswith(b"GET"):
                await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
                for _ in range(size // 65536):
                    await stream.send(bytes(65536))
                return
            tail = head.partition(b"\r\n\r\n")[2]
            seen += len(tail)
            while b"--\r\n" not in tail:
                piece = await stream.receive()
                seen += len(piece)
                tail = (tail + piece)[-64:]
            await stream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def produce() -> AsyncIterator[bytes]:
        for _ in range(size // 65536):
            yield bytes(65536)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as server:
        server.start_soon(listener.serve, serve)
        url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        async with AsyncSandboxClient(api_endpoint=url) as client:
            sandbox = AsyncSandbox.from_dict({"name": "box", "dataplane_url": url}, client)
            tracemalloc.start()
            try:
                await sandbox.download("/a", tmp_path / "a")
                await sandbox.upload("/a", tmp_path / "a")
                await sandbox.upload("/a", produce())
                assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
            finally:
                tracemalloc.stop()
        server.cancel_scope.cancel()
    assert seen > 2 * size
    assert (tmp_path / "a").stat().st_size == size


async def test_a_sandbox_without_a_data_plane_says_so_before_anything_is_sent() -> None:
    async with AsyncSandboxClient(api_endpoint="http://127.0.0.1:9") as client:
        sandbox = AsyncSandbox.from_dict({"name": "box"}, client)
        for attempt in (
            sandbox.run("true"),
            sandbox.read("/a"),
            sandbox.write("/a", ""),
            sandbox.reconnect("1"),
        ):
            with pytest.raises(DataplaneNotConfiguredError, match="'box' has no dataplane_url"):
                await attempt


async def test_searches() -> None:
    async def handler(request: Request) -> Reply:
        found = {"path": "/a/b.py", "is_dir": False, "size_bytes": 2, "line": 1, "text": "x"}
        return Reply(json={"matches": [found], "asked": request.json})

    async with sandbox_at(handler) as sandbox:
        assert [match.path for match in await sandbox.ls("/a", limit=3)] == ["/a/b.py"]
        assert [match.text for match in await sandbox.grep("x", "/a", glob="*.py")] == ["x"]
        assert not (await sandbox.glob("**", "/a")).truncated
