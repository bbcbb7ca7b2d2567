"""The data plane's plain HTTP requests as data (wire protocol, sections 3.1 and 4).

Files, and a command without a websocket.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import attrs

from ..errors import SandboxOperationError
from ..models import ExecutionResult, FileChunk, FileStat, GlobResult, GrepResult
from .http_call import HttpCall, HttpResponse, Resend, json_body, json_object
from .http_errors import execute_error, file_error, write_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .frames import Execute

T = TypeVar("T")

__all__ = ["DataPlane", "content_range", "file_chunk", "multipart_frame", "range_header"]


@attrs.frozen(kw_only=True)
class DataPlane:
    """Builds the requests to one sandbox."""

    url: str
    """The sandbox's `dataplane_url`."""
    sandbox: str
    """Its name, for error messages."""

    def download_url(self, path: str) -> str:
        """Where to read a file, whole or in part."""
        return self._file("download", path)

    def download_range(
        self,
        path: str,
        *,
        start: int | None = None,
        end: int | None = None,
        suffix_bytes: int | None = None,
        if_range: str | None = None,
        if_none_match: str | None = None,
        timeout: float,
    ) -> HttpCall[FileChunk]:
        """`GET /download` with a range and validators; see `range_header` for what it refuses."""
        headers = {"range": range_header(start=start, end=end, suffix_bytes=suffix_bytes)}
        if if_range is not None:
            headers["if-range"] = if_range
        if if_none_match is not None:
            headers["if-none-match"] = if_none_match

        def read(response: HttpResponse) -> FileChunk:
            if response.status != 304 and not response.success:
                raise self.file_error(response, path)
            return file_chunk(response)

        return HttpCall(
            method="GET",
            url=self.download_url(path),
            headers=headers,
            read=read,
            timeout=timeout,
            unbounded_body=True,
            max_body_bytes=None,
        )

    def stat(self, path: str, *, timeout: float) -> HttpCall[FileStat]:
        """`HEAD /download`."""

        def read(response: HttpResponse) -> FileStat:
            if response.status == 400 and not response.body:  # an answer to HEAD cannot say why
                text = f"{path!r} in sandbox {self.sandbox!r} cannot be examined: it is no regular file"
                raise SandboxOperationError(text, "read", "ReadError")
            if not response.success:
                raise self.file_error(response, path)
            headers = response.headers
            return FileStat(
                _digits(headers.get("content-length")) or 0,
                headers.get("etag"),
                headers.get("last-modified"),
                headers.get("content-type"),
            )

        return HttpCall(method="HEAD", url=self.download_url(path), read=read, timeout=timeout)

    def upload(self, path: str, content: bytes, *, boundary: str, timeout: float) -> HttpCall[None]:
        """`POST /upload` with the whole content; see `multipart_frame` for the boundary."""
        head, tail = multipart_frame(boundary)
        return self._upload(path, boundary, timeout, head + content + tail)

    def upload_stream(self, path: str, *, boundary: str, timeout: float) -> HttpCall[None]:
        """`POST /upload` whose body the driver sends: `multipart_frame(boundary)` around the content."""
        return self._upload(path, boundary, timeout, None)

    def glob(self, pattern: str, path: str, *, limit: int | None, timeout: float) -> HttpCall[GlobResult]:
        """`POST /glob`."""
        return self._search(
            "glob", path, {"pattern": pattern, "path": path, "limit": limit}, GlobResult.from_dict, timeout
        )

    def grep(
        self, pattern: str, path: str, *, glob: str | None, limit: int | None, timeout: float
    ) -> HttpCall[GrepResult]:
        """`POST /grep`."""
        query = {"pattern": pattern, "path": path, "glob": glob, "limit": limit}
        return self._search("grep", path, query, GrepResult.from_dict, timeout)

    def execute(self, command: Execute) -> HttpCall[ExecutionResult]:
        """`POST /execute`: run a command, and get its output when it has ended (section 3.1).

        Raises:
            ValueError: The command needs more than one request and one answer.
        """
        refused = {
            "pty": command.pty,
            "open stdin (close_input=False)": not command.close_stdin,
            "kill_on_disconnect": command.kill_on_disconnect,
            "timeout=0": not command.timeout_seconds,
        }
        if any(refused.values()):
            names = ", ".join(name for name, used in refused.items() if used)
            raise ValueError(f"this server has no websocket endpoint, and without one there is no {names}")
        body: dict[str, Any] = {
            "command": command.command,
            "timeout": command.timeout_seconds,
            "shell": command.shell,
            "env": dict(command.env) or None,
            "cwd": command.cwd,
            "run_config": command.run_config,
        }

        def read(response: HttpResponse) -> ExecutionResult:
            if not response.success:
                raise execute_error(response, command.timeout_seconds)
            return ExecutionResult.from_dict(json_object(response))

        return HttpCall(
            method="POST",
            url=f"{self.url}/execute",
            read=read,
            timeout=command.timeout_seconds + 10,
            resend=Resend.IF_REFUSED,
            max_body_bytes=None,
            **json_body({name: value for name, value in body.items() if value is not None}),
        )

    def file_error(self, response: HttpResponse, path: str) -> Exception:
        """The error of a download of `path` that did not succeed."""
        return file_error(response, path, self.sandbox)

    def _upload(self, path: str, boundary: str, timeout: float, body: bytes | None) -> HttpCall[None]:
        def read(response: HttpResponse) -> None:
            if not response.success:
                raise write_error(response)

        return HttpCall(
            method="POST",
            url=self._file("upload", path),
            headers={"content-type": f"multipart/form-data; boundary={boundary}"},
            read=read,
            timeout=timeout,
            unbounded_body=True,
            body=body,
        )

    def _search(
        self, verb: str, path: str, query: dict[str, Any], result: Callable[[Any], T], timeout: float
    ) -> HttpCall[T]:
        def read(response: HttpResponse) -> T:
            if not response.success:
                raise self.file_error(response, path)
            return result(json_object(response))

        members = {name: value for name, value in query.items() if value is not None}
        return HttpCall(method="POST", url=f"{self.url}/{verb}", read=read, timeout=timeout, **json_body(members))

    def _file(self, verb: str, path: str) -> str:
        if not path:
            raise ValueError("the path of a file in the sandbox is empty")
        return f"{self.url}/{verb}?{urlencode({'path': path}, errors='surrogateescape')}"


def multipart_frame(boundary: str) -> tuple[bytes, bytes]:
    """What goes before and after an uploaded file's bytes (section 4.1).

    Args:
        boundary: 1 to 70 letters and digits that do not occur in the content; choose them at random.
    """
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode("ascii"), f"\r\n--{boundary}--\r\n".encode("ascii")


def range_header(*, start: int | None = None, end: int | None = None, suffix_bytes: int | None = None) -> str:
    """The value of a `Range` header (section 4.2).

    Args:
        start: Position of the first byte.
        end: Position of the last byte, inclusive; None for the end of the file.
        suffix_bytes: Only the last so many bytes; excludes the other two.

    Raises:
        ValueError: Neither a start nor a suffix is given, or both are, or a number makes no sense.
    """
    if suffix_bytes is not None:
        if start is not None or end is not None:
            raise ValueError("suffix_bytes excludes start and end")
        if suffix_bytes <= 0:
            raise ValueError(f"suffix_bytes must be positive, not {suffix_bytes}")
        return f"bytes=-{suffix_bytes}"
    if start is None:
        raise ValueError("a range needs start or suffix_bytes")
    if start < 0:
        raise ValueError(f"start must not be negative, but is {start}")
    if end is not None and end < start:
        raise ValueError(f"end ({end}) lies before start ({start})")
    return f"bytes={start}-{'' if end is None else end}"


_CONTENT_RANGE = re.compile(r"\s*bytes\s+(?:([0-9]{1,18})-([0-9]{1,18})|\*)/(?:([0-9]{1,18})|\*)\s*", re.IGNORECASE)


def content_range(value: str | None) -> tuple[int, int | None]:
    """Read a `Content-Range` header.

    Returns:
        The position of the first byte, 0 if it is unknown, and the size of the whole file, None if it is unknown.
    """
    match = _CONTENT_RANGE.fullmatch(value or "")
    if match is None:
        return 0, None
    start, _, total = match.groups()
    return int(start or 0), None if total is None else int(total)


def file_chunk(response: HttpResponse) -> FileChunk:
    """Read the answer to a range request: 206, 200 or 304."""
    headers = response.headers
    etag, modified = headers.get("etag"), headers.get("last-modified")
    if response.status == 304:
        return FileChunk(b"", etag, unchanged=True, last_modified=modified)
    if response.status == 206:
        start, total = content_range(headers.get("content-range"))
        return FileChunk(response.body, etag, total, start, True, last_modified=modified)
    return FileChunk(response.body, etag, len(response.body), last_modified=modified)


def _digits(value: str | None) -> int | None:
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 19 else None
