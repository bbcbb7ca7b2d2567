"""The official Python client reads, writes and finds files on our server (wire protocol, section 4)."""

from __future__ import annotations

import random
from typing import Any

import pytest
from langsmith.sandbox import ResourceNotFoundError, SandboxOperationError

pytestmark = pytest.mark.anyio

MIB = 1 << 20


@pytest.mark.parametrize("content", ["", "text ä€😀\r\n", b"\x00\x01\x02\x03\xff", b"\r\n--boundary--\r\n"], ids=repr)
async def test_what_is_written_is_read(sandbox: Any, content: str | bytes) -> None:
    await sandbox.write("/app/deep/er/file", content)
    assert await sandbox.read("/app/deep/er/file") == (content.encode() if isinstance(content, str) else content)


async def test_a_file_of_many_mebibytes(sandbox: Any) -> None:
    content = random.Random(4).randbytes(20 * MIB)
    await sandbox.write("/tmp/large", content)
    assert await sandbox.read("/tmp/large") == content


async def test_writing_replaces_what_was_there_and_keeps_its_mode(sandbox: Any) -> None:
    await sandbox.write("script", "#!/bin/sh\necho a longer text than the next\n")
    await sandbox.run("chmod 755 /home/user/script")
    await sandbox.write("script", "#!/bin/sh\necho short\n")
    assert (await sandbox.run("/home/user/script")).stdout == "short\n"


async def test_relative_paths_begin_in_the_home_folder(sandbox: Any) -> None:
    await sandbox.write("notes/a.txt", "hello")
    assert (await sandbox.run("cat /home/user/notes/a.txt")).stdout == "hello"
    assert await sandbox.read("notes/a.txt") == b"hello"


@pytest.mark.parametrize("name", ["a b", "a+b", "a%2Fb", "ä€😀", "a&b=c", "a#b?c", '"quoted"', "new\nline"])
async def test_names_with_odd_characters(sandbox: Any, name: str) -> None:
    await sandbox.write(f"/tmp/odd/{name}", name)
    assert await sandbox.read(f"/tmp/odd/{name}") == name.encode()
    assert [entry.path for entry in await sandbox.ls("/tmp/odd")] == [f"/tmp/odd/{name}"]


async def test_a_path_does_not_leave_the_sandbox(sandbox: Any) -> None:
    await sandbox.write("/../../tmp/inside", "x")
    assert await sandbox.read("/tmp/inside") == b"x"
    await sandbox.run("ln -s /../../../../tmp/inside /tmp/link")
    assert await sandbox.read("/tmp/link") == b"x"


@pytest.mark.parametrize("call", ["read", "stat"])
async def test_a_missing_file(sandbox: Any, call: str) -> None:
    with pytest.raises(ResourceNotFoundError) as caught:
        await getattr(sandbox, call)("/no/such/file")
    assert caught.value.resource_type == "file"
    assert "/no/such/file" in str(caught.value)


async def test_a_folder_is_not_a_file(sandbox: Any) -> None:
    with pytest.raises(SandboxOperationError) as reading:
        await sandbox.read("/tmp")
    assert (reading.value.operation, reading.value.error_type) == ("read", "ReadError")
    with pytest.raises(SandboxOperationError) as writing:
        await sandbox.write("/tmp", "x")
    assert (writing.value.operation, writing.value.error_type) == ("write", "WriteError")


async def test_stat(sandbox: Any) -> None:
    await sandbox.write("/tmp/file", "x" * 1000)
    first = await sandbox.stat("/tmp/file")
    assert first.size_bytes == 1000
    assert first.etag.startswith('"')
    assert first.etag.endswith('"')
    assert first.last_modified.endswith("GMT")
    assert first.content_type
    assert (await sandbox.stat("/tmp/file")).etag == first.etag
    await sandbox.write("/tmp/file", "y" * 1000)
    assert (await sandbox.stat("/tmp/file")).etag != first.etag


@pytest.mark.parametrize(
    ("options", "content", "start"),
    [
        ({"start": 2, "end": 4}, b"234", 2),
        ({"start": 7}, b"789", 7),
        ({"start": 7, "end": 5000}, b"789", 7),
        ({"suffix_bytes": 3}, b"789", 7),
        ({"suffix_bytes": 50}, b"0123456789", 0),
    ],
    ids=str,
)
async def test_a_range(sandbox: Any, options: dict[str, int], content: bytes, start: int) -> None:
    await sandbox.write("/tmp/file", "0123456789")
    chunk = await sandbox.read_range("/tmp/file", **options)
    assert (chunk.content, chunk.start, chunk.total_bytes, chunk.partial) == (content, start, 10, True)
    assert chunk.etag == (await sandbox.stat("/tmp/file")).etag


async def test_a_range_with_validators(sandbox: Any) -> None:
    await sandbox.write("/tmp/file", "0123456789")
    etag = (await sandbox.stat("/tmp/file")).etag
    same = await sandbox.read_range("/tmp/file", start=5, if_range=etag)
    assert (same.content, same.partial) == (b"56789", True)
    unchanged = await sandbox.read_range("/tmp/file", start=5, if_none_match=etag)
    assert (unchanged.content, unchanged.unchanged, unchanged.etag) == (b"", True, etag)
    await sandbox.write("/tmp/file", "abcdefghij")
    whole = await sandbox.read_range("/tmp/file", start=5, if_range=etag)
    assert (whole.content, whole.partial, whole.start) == (b"abcdefghij", False, 0)
    changed = await sandbox.read_range("/tmp/file", start=5, if_none_match=etag)
    assert (changed.content, changed.unchanged, changed.partial) == (b"fghij", False, True)


async def test_a_range_beyond_the_end(sandbox: Any) -> None:
    await sandbox.write("/tmp/file", "0123456789")
    with pytest.raises(SandboxOperationError, match=r"bytes \*/10"):
        await sandbox.read_range("/tmp/file", start=10)
    with pytest.raises(ResourceNotFoundError):
        await sandbox.read_range("/no/such/file", start=0)


@pytest.fixture
async def tree(sandbox: Any) -> Any:
    """A sandbox with a few files below /app."""
    for path in ("a.py", "b.txt", ".hidden.py", "sub/c.py", "sub/deep/d.py"):
        await sandbox.write(f"/app/{path}", f"first line of {path}\nneedle in {path}: [x]*\n")
    return sandbox


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.py", [".hidden.py", "a.py"]),
        ("**/*.py", [".hidden.py", "a.py", "sub/c.py", "sub/deep/d.py"]),
        ("sub/*", ["sub/c.py", "sub/deep"]),
        ("[ab].*", ["a.py", "b.txt"]),
        ("?.txt", ["b.txt"]),
        ("sub/**", ["sub", "sub/c.py", "sub/deep", "sub/deep/d.py"]),
        ("nothing*", []),
    ],
)
async def test_glob(tree: Any, pattern: str, paths: list[str]) -> None:
    found = await tree.glob(pattern, "/app")
    # Whether `sub/**` includes `sub` itself is nobody's promise.
    assert [entry.path for entry in found if entry.path != "/app/sub"] == [
        f"/app/{path}" for path in paths if path != "sub"
    ]
    assert not found.truncated


async def test_ls(tree: Any) -> None:
    found = await tree.ls("/app")
    assert [(entry.path, entry.is_dir) for entry in found] == [
        ("/app/.hidden.py", False),
        ("/app/a.py", False),
        ("/app/b.txt", False),
        ("/app/sub", True),
    ]
    assert found.matches[1].size_bytes == len("first line of a.py\nneedle in a.py: [x]*\n")
    assert found.matches[1].modified_at[:2] == "20"


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({}, [".hidden.py", "a.py", "b.txt", "sub/c.py", "sub/deep/d.py"]),
        ({"glob": "*.txt"}, ["b.txt"]),
        ({"glob": "c.py"}, ["sub/c.py"]),
        ({"glob": "sub/*.py"}, ["sub/c.py"]),
    ],
    ids=str,
)
async def test_grep(tree: Any, options: dict[str, str], paths: list[str]) -> None:
    found = await tree.grep("[x]*", "/app", **options)
    assert [(match.path, match.line, match.text) for match in found] == [
        (f"/app/{path}", 2, f"needle in {path}: [x]*") for path in paths
    ]


async def test_limits_truncate(tree: Any) -> None:
    globbed = await tree.glob("**/*.py", "/app", limit=2)
    assert (len(globbed), globbed.truncated) == (2, True)
    grepped = await tree.grep("needle", "/app", limit=2)
    assert (len(grepped), grepped.truncated) == (2, True)
    assert not (await tree.grep("needle", "/app", limit=5)).truncated


async def test_a_search_below_a_missing_folder(sandbox: Any) -> None:
    with pytest.raises(ResourceNotFoundError):
        await sandbox.ls("/no/such/folder")
    with pytest.raises(ResourceNotFoundError):
        await sandbox.grep("x", "/no/such/folder")
