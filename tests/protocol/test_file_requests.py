"""The data plane's HTTP requests, and what their answers become."""

from __future__ import annotations

import json
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio import errors
from sandbox_aio.models import ExecutionResult, FileChunk, FileStat, GlobResult, GrepMatch
from sandbox_aio.protocol.file_requests import (
    DataPlane,
    content_range,
    file_chunk,
    multipart_frame,
    range_header,
)
from sandbox_aio.protocol.frames import Execute
from sandbox_aio.protocol.http_call import HttpResponse, Resend

PLANE = DataPlane(url="http://h/d", sandbox="box")


def ok(value: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status, body=json.dumps(value).encode())


def test_paths_are_form_encoded() -> None:
    assert PLANE.download_url("/a b/é+") == "http://h/d/download?path=%2Fa+b%2F%C3%A9%2B"
    assert PLANE.download_url("/\udcff") == "http://h/d/download?path=%2F%FF"
    with pytest.raises(ValueError, match="path of a file in the sandbox is empty"):
        PLANE.download_url("")


def test_ranges() -> None:
    call = PLANE.download_range("/a", start=1, end=2, if_range='"x"', if_none_match='"y"', timeout=60)
    assert call.method == "GET"
    assert call.headers == {"range": "bytes=1-2", "if-range": '"x"', "if-none-match": '"y"'}
    assert call.unbounded_body
    assert PLANE.download_range("/a", suffix_bytes=3, timeout=60).headers == {"range": "bytes=-3"}
    headers = {"content-range": "bytes 1-2/9", "etag": '"x"', "last-modified": "then"}
    chunk = call.read(HttpResponse(status=206, headers=headers, body=b"bc"))
    assert chunk == FileChunk(b"bc", '"x"', 9, 1, True, last_modified="then")
    assert chunk.end == 3
    assert call.read(HttpResponse(status=304, headers={"etag": '"x"'})) == FileChunk(b"", '"x"', unchanged=True)
    assert call.read(HttpResponse(status=200, body=b"abc")) == FileChunk(b"abc", None, 3)
    with pytest.raises(errors.SandboxOperationError):
        call.read(HttpResponse(status=416))


def test_stat_reads_headers() -> None:
    call = PLANE.stat("/a", timeout=60)
    with pytest.raises(errors.SandboxOperationError, match="'/a' in sandbox 'box' cannot be examined"):
        call.read(HttpResponse(status=400))
    assert call.method == "HEAD"
    headers = {"content-length": "7", "etag": '"x"', "last-modified": "then", "content-type": "text/plain"}
    assert call.read(HttpResponse(status=200, headers=headers)) == FileStat(7, '"x"', "then", "text/plain")
    assert call.read(HttpResponse(status=200, headers={"content-length": "x"})) == FileStat(0)
    assert call.read(HttpResponse(status=200)) == FileStat(0)
    with pytest.raises(errors.ResourceNotFoundError, match=r"^there is no '/a' in sandbox 'box'$"):
        call.read(HttpResponse(status=404))


@given(st.binary())
def test_an_upload_is_one_part_of_a_form(content: bytes) -> None:
    call = PLANE.upload("/a b", content, boundary="B0undary", timeout=60)
    assert (call.method, call.url) == ("POST", "http://h/d/upload?path=%2Fa+b")
    assert call.body is not None
    head, _, rest = call.body.partition(b"\r\n\r\n")
    assert head.startswith(b"--B0undary\r\n")
    part = BytesParser().parsebytes(head.partition(b"\r\n")[2] + b"\r\n\r\n")
    assert part.get_content_type() == "application/octet-stream"
    assert part["content-disposition"] == 'form-data; name="file"; filename="file"'
    assert rest == content + b"\r\n--B0undary--\r\n"


def test_a_streamed_upload_leaves_the_body_to_the_driver() -> None:
    call = PLANE.upload_stream("/a", boundary="b", timeout=60)
    assert call.body is None
    assert call.headers == {"content-type": "multipart/form-data; boundary=b"}
    assert multipart_frame("b")[1] == b"\r\n--b--\r\n"
    call.read(ok({"path": "/a", "written": 1}))
    with pytest.raises(errors.SandboxOperationError) as caught:
        call.read(ok({"detail": {"error": "WriteError", "message": "full"}}, 400))
    assert caught.value.operation == "write"


def test_searches() -> None:
    call = PLANE.glob("*.py", "/app", limit=None, timeout=60)
    assert (call.method, call.url) == ("POST", "http://h/d/glob")
    assert json.loads(call.body or b"") == {"pattern": "*.py", "path": "/app"}
    found = call.read(ok({"matches": [{"path": "/app/a.py", "size_bytes": 3}], "truncated": True}))
    assert [match.path for match in found] == ["/app/a.py"]
    assert len(found) == 1
    assert found.truncated
    assert call.read(ok({})) == GlobResult()
    grep = PLANE.grep("x", "/app", glob="*.py", limit=5, timeout=60)
    assert json.loads(grep.body or b"") == {"pattern": "x", "path": "/app", "glob": "*.py", "limit": 5}
    lines = grep.read(ok({"matches": [{"path": "/app/a.py", "line": 2, "text": "x = 1"}]}))
    assert list(lines) == [GrepMatch("/app/a.py", 2, "x = 1")]
    assert len(lines) == 1
    with pytest.raises(errors.ResourceNotFoundError):
        grep.read(ok({}, 404))


def test_a_command_over_http() -> None:
    command = Execute(command="true", command_id="1", timeout_seconds=5, close_stdin=True, env={"A": "1"})
    call = PLANE.execute(command)
    assert (call.method, call.url, call.timeout) == ("POST", "http://h/d/execute", 15)
    assert call.resend is Resend.IF_REFUSED
    assert json.loads(call.body or b"") == {
        "command": "true",
        "timeout": 5,
        "shell": "/bin/bash",
        "env": {"A": "1"},
    }
    assert call.read(ok({"stdout": "a", "stderr": "b", "exit_code": 3})) == ExecutionResult("a", "b", 3)
    assert call.read(ok({})) == ExecutionResult("", "", -1)
    with pytest.raises(errors.CommandTimeoutError):
        call.read(ok({"detail": {"error": "CommandTimeout", "message": "5 s"}}, 400))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pty": True}, "pty"),
        ({"close_stdin": False}, "open stdin"),
        ({"kill_on_disconnect": True}, "kill_on_disconnect"),
        ({"timeout_seconds": 0}, "timeout=0"),
    ],
)
def test_what_one_answer_cannot_do_is_refused(options: dict[str, Any], named: str) -> None:
    defaults: dict[str, Any] = {"command": "true", "command_id": "1", "close_stdin": True}
    command = Execute(**(defaults | options))
    with pytest.raises(ValueError, match=f"no websocket endpoint, and without one there is no .*{named}"):
        PLANE.execute(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs start or suffix_bytes"),
        ({"end": 3}, "needs start or suffix_bytes"),
        ({"start": 1, "suffix_bytes": 1}, "excludes start and end"),
        ({"end": 1, "suffix_bytes": 1}, "excludes start and end"),
        ({"suffix_bytes": 0}, "must be positive"),
        ({"start": -1}, "must not be negative"),
        ({"start": 2, "end": 1}, "lies before start"),
    ],
)
def test_ranges_that_make_no_sense(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        range_header(**arguments)


@given(st.integers(0, 10**17), st.none() | st.integers(0, 10**17), st.integers(1, 10**17))
def test_a_range_is_read_as_it_was_written(start: int, length: int | None, total: int) -> None:
    end = None if length is None else start + length
    header = range_header(start=start, end=end)
    assert header == f"bytes={start}-{'' if end is None else end}"
    if end is not None:
        assert content_range(f"bytes {header.removeprefix('bytes=')}/{total}") == (start, total)
        assert content_range(f"Bytes {start}-{end}/*") == (start, None)


@given(st.text())
def test_any_content_range_at_all(text: str) -> None:
    start, total = content_range(text)
    assert start >= 0
    assert total is None or total >= 0


@pytest.mark.parametrize("text", [None, "", "bytes */", "bytes a-b/c", "items 1-2/3", "bytes 1-2/3/4", "bytes 1-/3"])
def test_a_content_range_without_sense(text: str | None) -> None:
    assert content_range(text) == (0, None)
    assert content_range("bytes */9") == (0, 9)


def test_a_partial_answer_without_a_range_begins_at_zero() -> None:
    assert file_chunk(HttpResponse(status=206, body=b"a")) == FileChunk(b"a", None, None, 0, True)
