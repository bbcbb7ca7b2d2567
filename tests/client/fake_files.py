"""The file half of a data plane in memory, with ranges and validators, that can cut connections."""

from __future__ import annotations

import hashlib
import re

from tests.client.fake_service import Reply, Request, error


class FakeFiles:
    """The handler of a `fake_service`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        """After how many bytes of the body to cut the next downloads."""
        self.etags = True
        self.uploads: list[Request] = []
        self.refusals: list[Reply] = []
        """Given instead of the next answers."""

    async def __call__(self, request: Request) -> Reply:
        """Answer a request."""
        if self.refusals:
            return self.refusals.pop(0)
        path = request.query.get("path", "")
        if request.path.endswith("/upload"):
            self.uploads.append(request)
            self.files[path] = _only_part(request)
            return Reply(json={"path": path, "written": len(self.files[path])})
        if path not in self.files:
            return error(404, "FileNotFound", "no such file")
        return self._download(request, self.files[path])

    def _download(self, request: Request, content: bytes) -> Reply:
        etag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        headers = {"etag": etag, "last-modified": "then"} if self.etags else {}
        cut = self.cuts.pop(0) if self.cuts and request.method == "GET" else None
        if request.headers.get("if-none-match") == etag:
            return Reply(status=304, headers=headers)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted is None or request.headers.get("if-range", etag) != etag:
            return Reply(headers=headers, body=content, cut_after=cut)
        start, end = _span(wanted[1], wanted[2], len(content))
        if start >= len(content):
            return error(416, content_range=f"bytes */{len(content)}")
        span = {"content-range": f"bytes {start}-{end - 1}/{len(content)}"}
        return Reply(status=206, headers=headers | span, body=content[start:end], cut_after=cut)


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _only_part(request: Request) -> bytes:
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    opening, _, rest = request.body.partition(b"\r\n\r\n")
    assert opening.startswith(b"--" + boundary)
    content, _, end = rest.rpartition(b"\r\n--" + boundary + b"--\r\n")
    assert end == b""
    return content
