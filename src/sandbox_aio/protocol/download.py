"""One download over as many connections as it takes (wire protocol, section 4.2).

A `Download` says what to ask for next, checks what is offered, and counts what arrived. After a cut it asks for the
rest, by range and on condition that the file is still the same; bytes of two versions of a file are never joined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ..errors import RemoteProtocolError, SandboxOperationError
from .file_requests import DataPlane, content_range, range_header
from .http_call import HttpCall, nothing

if TYPE_CHECKING:
    from .http_call import HttpResponse

__all__ = ["Download"]


@attrs.define(kw_only=True)
class Download:
    """The state of one download.

    For each attempt: `request`, `accept`, then `received` for every piece, and `interrupted` if the connection breaks.
    """

    plane: DataPlane
    path: str
    timeout: float
    """Seconds without a byte after which an attempt is lost."""
    max_retries: int = 3
    """Attempts in a row that may fail without a new byte."""
    offset: int = 0
    """Bytes that arrived, over all attempts."""
    total: int | None = None
    """The size of the file, when the sandbox told it."""
    etag: str | None = None
    _failures: int = 0

    def request(self) -> HttpCall[None]:
        """What to ask for now."""
        headers = {}
        if self.offset:
            headers = {"range": range_header(start=self.offset), "if-range": self.etag or ""}
        return HttpCall(
            method="GET",
            url=self.plane.download_url(self.path),
            headers=headers,
            read=nothing,
            timeout=self.timeout,
            unbounded_body=True,
        )

    def accept(self, response: HttpResponse) -> None:
        """Check the head of an answer, and its body if it is no success. Its bytes then go to `received`.

        Raises:
            ResourceNotFoundError: There is no such file.
            SandboxOperationError: The file changed since the first byte (`error_type="FileChanged"`), or is unreadable.
            RemoteProtocolError: The sandbox offers other bytes than those that were asked for.
        """
        status, etag = response.status, response.headers.get("etag")
        if self.offset and (status in (200, 416) or (status == 206 and etag != self.etag)):
            raise SandboxOperationError(
                f"{self.path!r} changed while it was downloaded; download it again", "read", "FileChanged"
            )
        if not response.success:
            raise self.plane.file_error(response, self.path)
        if not self.offset:
            length = response.headers.get("content-length", "")
            self.etag = etag
            self.total = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
        start, _ = content_range(response.headers.get("content-range"))
        if status != (206 if self.offset else 200) or start != self.offset:
            raise RemoteProtocolError(f"the sandbox answered {status} from byte {start} when asked from {self.offset}")

    def received(self, size: int) -> None:
        """So many more bytes arrived."""
        self.offset += size
        self._failures = 0

    def interrupted(self, *, jitter: float) -> float | None:
        """The connection broke.

        Returns:
            Seconds to wait before the next attempt; None if there is none, since too many failed in a row or since the
            sandbox gave no strong ETag by which to know the file again.
        """
        resumable = not self.offset or (self.etag is not None and not self.etag.startswith("W/"))
        if not resumable or self._failures >= self.max_retries:
            return None
        self._failures += 1
        return 0.0 if self._failures == 1 else min(0.5 * 2.0 ** (self._failures - 2), 8.0) * (0.5 + jitter / 2)
