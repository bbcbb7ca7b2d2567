"""A download over many connections: every byte once, of one version of the file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio import errors
from sandbox_aio.protocol.download import Download
from sandbox_aio.protocol.file_requests import DataPlane
from sandbox_aio.protocol.http_call import HttpCall, HttpResponse

PLANE = DataPlane(url="http://h/d", sandbox="box")


def new(**changes: Any) -> Download:
    arguments: dict[str, Any] = {"plane": PLANE, "path": "/a", "timeout": 60}
    return Download(**(arguments | changes))


def whole(etag: str | None = '"1"', **headers: str) -> HttpResponse:
    tag = {} if etag is None else {"etag": etag}
    return HttpResponse(status=200, headers=tag | {k.replace("_", "-"): v for k, v in headers.items()})


def rest(start: int, etag: str = '"1"') -> HttpResponse:
    return HttpResponse(status=206, headers={"etag": etag, "content-range": f"bytes {start}-9/10"})


class Server:
    """What a sandbox does with the requests for one file."""

    def __init__(self, content: bytes, etag: str) -> None:
        self.content = content
        self.etag = etag

    def answer(self, call: HttpCall[None]) -> tuple[HttpResponse, bytes]:
        wanted = call.headers.get("range", "")
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        if not wanted or call.headers["if-range"] != self.etag:
            return HttpResponse(status=200, headers={"etag": self.etag}), self.content
        if start >= len(self.content):
            return HttpResponse(status=416, headers={"content-range": f"bytes */{len(self.content)}"}), b""
        total = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return HttpResponse(status=206, headers={"etag": self.etag, "content-range": total}), self.content[start:]


@given(st.binary(min_size=1, max_size=40), st.lists(st.integers(0, 12), max_size=30), st.none() | st.integers(0, 20))
def test_bytes_of_two_versions_are_never_joined(content: bytes, cuts: list[int], change_at: int | None) -> None:
    """Cut the connection after each of `cuts` bytes; at one of the cuts, perhaps, write another file."""
    download, server, got = new(max_retries=100), Server(content, '"1"'), b""
    versions = {content, content[::-1] + b"!"}
    for number, cut in enumerate([*cuts, None]):
        if number == change_at:
            server = Server(content[::-1] + b"!", '"2"')
        head, body = server.answer(download.request())
        try:
            download.accept(head)
        except errors.SandboxOperationError as error:
            assert error.error_type == "FileChanged"
            return
        got += body[:cut]
        download.received(len(body[:cut]))
        if cut is None or len(body) <= cut:
            break
        assert download.interrupted(jitter=0.5) is not None
    assert got in versions
    assert download.offset == len(got)


def test_the_first_request_asks_for_all_and_the_next_for_the_rest() -> None:
    download = new()
    assert download.request().headers == {}
    assert download.request().unbounded_body
    download.accept(whole(content_length="10"))
    assert (download.total, download.etag) == (10, '"1"')
    download.received(4)
    assert download.interrupted(jitter=0) == 0
    assert download.request().headers == {"range": "bytes=4-", "if-range": '"1"'}
    download.accept(rest(4))
    download.received(6)
    assert download.offset == 10


@pytest.mark.parametrize("response", [whole(), whole('"2"'), rest(4, '"2"'), HttpResponse(status=416)])
def test_a_file_that_changed_is_not_continued(response: HttpResponse) -> None:
    download = new()
    download.accept(whole())
    download.received(4)
    with pytest.raises(errors.SandboxOperationError, match="changed while it was downloaded") as caught:
        download.accept(response)
    assert (caught.value.operation, caught.value.error_type) == ("read", "FileChanged")


@pytest.mark.parametrize("start", [0, 3, 5])
def test_other_bytes_than_asked_for_are_refused(start: int) -> None:
    download = new()
    download.accept(whole())
    download.received(4)
    with pytest.raises(errors.RemoteProtocolError, match=f"from byte {start} when asked from 4"):
        download.accept(rest(start))


def test_a_part_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(errors.RemoteProtocolError, match="answered 206"):
        new().accept(rest(0))


def test_errors_are_those_of_reading() -> None:
    with pytest.raises(errors.ResourceNotFoundError):
        new().accept(HttpResponse(status=404))
    assert new(total=3).total == 3
    download = new()
    download.accept(whole(content_length="ten"))
    assert download.total is None


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_a_strong_etag_nothing_is_continued(etag: str | None) -> None:
    download = new()
    assert download.interrupted(jitter=0) == 0
    download.accept(whole(etag))
    download.received(1)
    assert download.interrupted(jitter=0) is None


def test_progress_gives_the_tries_back() -> None:
    download = new(max_retries=3)
    assert [download.interrupted(jitter=1) for _ in range(4)] == [0, 0.5, 1, None]
    download.accept(whole())
    download.received(1)
    assert [download.interrupted(jitter=0) for _ in range(4)] == [0, 0.25, 0.5, None]
