"""Files in and out (wire protocol, sections 4.1 and 4.2; choices C1 to C7)."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.daemon.test_http import HEAD, ask, fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager

    import httpx

    from tests.daemon.process import Daemon

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(daemon: Daemon, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own inside the sandbox."""
    path = daemon.root / f"files-{abs(hash(request.node.nodeid)):x}"
    path.mkdir()
    return path


async def upload(daemon: Daemon, path: str | Path, content: bytes) -> httpx.Response:
    async with daemon.http() as client:
        files = {"file": ("file", content, "application/octet-stream")}
        return await client.post("/upload", params={"path": str(path)}, files=files)


async def download(daemon: Daemon, path: str | Path, method: str = "GET", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with daemon.http() as client:
        return await client.request(method, "/download", params={"path": str(path)}, headers=named)


# --- upload --------------------


async def test_an_upload_makes_parents_and_says_what_it_wrote(daemon: Daemon, folder: Path) -> None:
    path = folder / "new" / "folders" / "file.bin"
    content = bytes(range(256)) * 4
    response = await upload(daemon, path, content)

    assert (response.status_code, response.json()) == (200, {"path": str(path), "written": 1024})
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["file.bin"]


async def test_a_file_that_does_not_tell_its_size_is_read_all_the_same(daemon: Daemon) -> None:
    response = await download(daemon, "/proc/self/status")
    assert response.status_code == 200
    assert response.text.startswith("Name:")
    head = await download(daemon, "/proc/version", "HEAD")
    assert int(head.headers["content-length"]) == len(Path("/proc/version").read_bytes())


async def test_an_upload_makes_as_many_parents_as_a_path_can_have(daemon: Daemon) -> None:
    top = f"/tmp/deep-{uuid.uuid4().hex}"
    try:
        assert (await upload(daemon, top + "/d" * 1900 + "/file", b"x")).status_code == 200
    finally:
        subprocess.run(["rm", "-rf", top], check=True)


async def test_an_upload_replaces_a_file_and_keeps_its_mode(daemon: Daemon, folder: Path) -> None:
    path = folder / "script"
    path.write_text("old, and longer than the new one")
    path.chmod(0o751)
    with path.open() as before:
        await upload(daemon, path, b"new")
        assert before.read() == "old, and longer than the new one"  # replaced as a whole, not written into

    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o751


async def test_a_relative_path_belongs_to_the_files_root(daemon: Daemon, folder: Path) -> None:
    response = await upload(daemon, f"{folder.name}/relative", b"x")

    assert response.json()["path"] == str(folder / "relative")
    assert (await download(daemon, f"{folder.name}/relative")).content == b"x"


async def test_without_a_files_root_the_work_dir_is_meant(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(files_root="/no/such/home") as daemon:
        await upload(daemon, "file", b"x")
        assert (daemon.root / "file").read_bytes() == b"x"


async def test_names_may_hold_anything(daemon: Daemon, folder: Path) -> None:
    for name in ("with space", "pl+us", "h\u00e9llo \u20ac", "a%2Fb", "q?&=#", "new\nline"):
        await upload(daemon, folder / name, name.encode())
        assert (folder / name).read_bytes() == name.encode()
        assert (await download(daemon, folder / name)).content == name.encode()


async def test_an_upload_goes_through_a_symlink(daemon: Daemon, folder: Path) -> None:
    (folder / "link").symlink_to(folder / "target")
    await upload(daemon, folder / "link", b"x")

    assert (folder / "link").is_symlink()
    assert (folder / "target").read_bytes() == b"x"


async def test_an_upload_is_streamed(daemon: Daemon, folder: Path) -> None:
    assert daemon.process is not None
    size, boundary = 150_000_000, "b"

    async def body() -> AsyncIterator[bytes]:
        yield f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'.encode()
        for _ in range(150):
            yield b"\r\n-" * 250_000
        yield f"\r\n--{boundary}--\r\n".encode()

    async with daemon.http() as client:
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        response = await client.post(
            "/upload", params={"path": str(folder / "big")}, content=body(), headers=headers, timeout=60
        )
    peak = int((await daemon.run(f"grep VmHWM /proc/{daemon.process.pid}/status")).stdout.split()[1])

    assert response.json()["written"] == 150 * 750_000
    assert (folder / "big").stat().st_size == 150 * 750_000 < size
    assert peak * 1024 < 110_000_000
    (folder / "big").unlink()


@pytest.mark.parametrize("path", ["", "a\0b", None])
async def test_a_path_that_is_none_is_an_error(daemon: Daemon, path: str | None) -> None:
    async with daemon.http() as client:
        params = {} if path is None else {"path": path}
        assert fault(await client.post("/upload", params=params, files={"file": b"x"})) == (400, "WriteError")
        assert fault(await client.get("/download", params=params)) == (400, "ReadError")


async def test_what_is_no_place_for_a_file_is_an_error(daemon: Daemon, folder: Path) -> None:
    (folder / "file").write_text("x")
    os.mkfifo(folder / "fifo")

    for path in (folder, folder / "fifo", folder / "file" / "below", folder / ("x" * 300), "/proc/nowhere"):
        assert fault(await upload(daemon, path, b"x")) == (400, "WriteError")
    assert sorted(os.listdir(folder)) == ["fifo", "file"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/octet-stream", b"x"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no form at all"),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n--b--\r\n'),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A: b\r\n" * 100 + b"\r\n\r\n--b--\r\n"),
    ],
)
async def test_a_form_that_is_none_is_an_error_and_leaves_nothing(
    daemon: Daemon, folder: Path, content_type: str, body: bytes
) -> None:
    async with daemon.http() as client:
        headers = {"content-type": content_type}
        params = {"path": str(folder / "file")}
        response = await client.post("/upload", params=params, content=body, headers=headers)

    assert fault(response) == (400, "WriteError")
    assert os.listdir(folder) == []


async def test_only_the_part_named_file_is_taken(daemon: Daemon, folder: Path) -> None:
    async with daemon.http() as client:
        files = [("other", b"1"), ("file", b"2"), ("file", b"3")]
        await client.post("/upload", params={"path": str(folder / "file")}, files=files)

    assert (folder / "file").read_bytes() == b"2"


async def test_a_file_beyond_the_limit_is_an_error_and_leaves_nothing(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(limits={"upload_bytes": 100_000}) as daemon:
        assert fault(await upload(daemon, "file", b"x" * 5_000_000)) == (413, "WriteError")
        assert os.listdir(daemon.root) == []
        assert (await upload(daemon, "file", b"x" * 100_000)).status_code == 200


async def test_an_upload_that_breaks_off_leaves_nothing(daemon: Daemon, folder: Path) -> None:
    head = f"POST /upload?path={folder}/file HTTP/1.1\r\n{HEAD}Content-Length: 100000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhalf'
    with daemon.connect() as connection:
        connection.sendall((head + part).encode())
        with anyio.fail_after(10):
            while not os.listdir(folder):
                await asyncio.sleep(0.01)
    with anyio.fail_after(10):
        while os.listdir(folder):
            await asyncio.sleep(0.01)


@pytest.mark.root
async def test_a_new_file_belongs_to_the_sandboxs_user(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(user="1234:5678") as daemon:
        await upload(daemon, "new/file", b"x")
        for path in (daemon.root / "new", daemon.root / "new" / "file"):
            assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)


# --- download --------------------


async def test_a_file_with_all_its_headers(daemon: Daemon, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"0123456789")
    os.utime(path, (0, 1_000_000_000))

    for method, content in (("GET", b"0123456789"), ("HEAD", b"")):
        response = await download(daemon, path, method)
        assert response.status_code == 200
        assert response.content == content
        assert response.headers["content-length"] == "10"
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["accept-ranges"] == "bytes"
        assert response.headers["last-modified"] == "Sun, 09 Sep 2001 01:46:40 GMT"
        assert response.headers["etag"].startswith('"')
        assert "content-encoding" not in response.headers


async def test_an_empty_file(daemon: Daemon, folder: Path) -> None:
    (folder / "empty").touch()
    response = await download(daemon, folder / "empty")
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")
    assert (await download(daemon, folder / "empty", range="bytes=0-")).status_code == 416


@pytest.mark.parametrize(
    ("asked", "status", "content", "part"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=2-", 206, b"23456789", "bytes 2-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=99-100", 416, None, "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
async def test_ranges(
    daemon: Daemon, folder: Path, asked: str, status: int, content: bytes | None, part: str | None
) -> None:
    (folder / "file").write_bytes(b"0123456789")
    response = await download(daemon, folder / "file", range=asked)

    assert response.status_code == status
    assert response.headers.get("content-range") == part
    assert response.headers["etag"]
    assert content is None or response.content == content
    assert (await download(daemon, folder / "file", "HEAD", range=asked)).headers["content-length"] == "10"


async def test_validators(daemon: Daemon, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"0123456789")
    first = await download(daemon, path)
    etag = first.headers["etag"]

    for tags in (etag, f'"x", {etag}', "*", f"W/{etag}"):
        unchanged = await download(daemon, path, if_none_match=tags, range="bytes=99-")
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == etag
        assert unchanged.headers["last-modified"] == first.headers["last-modified"]
    assert (await download(daemon, path, if_none_match='"x"')).status_code == 200
    assert (await download(daemon, path, range="bytes=1-2", if_range=etag)).status_code == 206
    assert (await download(daemon, path, range="bytes=1-2", if_range='"x"')).content == b"0123456789"
    times = path.stat()
    path.write_bytes(b"9876543210")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (await download(daemon, path)).headers["etag"] != etag


async def test_what_is_no_file_is_an_error(daemon: Daemon, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").touch()

    for path in (folder, folder / "fifo", folder / "loop", "/dev/zero", "/dev/null"):
        assert fault(await download(daemon, path)) == (400, "ReadError")
    for path in (folder / "missing", folder / "file" / "below", "missing-and-relative"):
        assert fault(await download(daemon, path)) == (404, "FileNotFound")
        assert (await download(daemon, path, "HEAD")).status_code == 404


async def test_a_large_file_arrives_whole_and_a_client_that_leaves_does_no_harm(daemon: Daemon, folder: Path) -> None:
    content = os.urandom(1 << 20) * 20
    (folder / "large").write_bytes(content)
    assert (await download(daemon, folder / "large")).content == content
    with daemon.connect() as connection:
        connection.sendall(f"GET /download?path={folder}/large HTTP/1.1\r\n{HEAD}\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert (await download(daemon, folder / "large", range="bytes=-5")).content == content[-5:]


async def test_a_file_that_shrinks_while_it_is_read_breaks_the_response_off(daemon: Daemon, folder: Path) -> None:
    path = folder / "shrinking"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    with daemon.connect() as connection:
        connection.sendall(f"GET /download?path={path} HTTP/1.1\r\n{HEAD}\r\n".encode())
        received = len(connection.recv(1000))
        path.write_bytes(b"")
        try:
            while data := connection.recv(1 << 20):
                received += len(data)
        except ConnectionResetError:
            pass
    assert received < 100_000_000
    assert ask(daemon, f"GET /healthz HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
