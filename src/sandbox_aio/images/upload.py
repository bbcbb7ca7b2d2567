"""Blobs and manifests on their way to a registry (OCI distribution specification, "Push")."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from .backoff import Backoff
from .errors import ImageError
from .registry import Request, pushing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import httpx

    from .registry import Registry

__all__ = ["Uploads"]

TRIES: Final = 5
"""Of the upload of one blob."""
PIECE: Final = 1 << 20
COMMIT: Final = 300.0
"""Seconds in which a registry must have put a blob away: some copy it first."""
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d{1,18})", re.ASCII)


class Uploads:
    """What is written to one repository. Raises ImageError.

    `on_bytes` is told of what is sent; of fewer than none when it has to be sent again.
    """

    def __init__(self, registry: Registry, repository: str, on_bytes: Callable[[int], None]) -> None:
        self._registry = registry
        self._repository = repository
        self._scopes = pushing(repository)
        self._on_bytes = on_bytes

    async def has(self, digest: str) -> bool:
        """Whether the repository has a blob."""
        target = f"/v2/{self._repository}/blobs/{digest}"
        answer = await self._registry.send(Request(method="HEAD", target=target, scopes=self._scopes, accepted=(404,)))
        return answer.is_success

    async def mount(self, digest: str, source: str) -> bool:
        """Take a blob over from another repository of the registry; return whether that was possible."""
        query = urlencode({"mount": digest, "from": source})
        request = Request(
            method="POST",
            target=f"/v2/{self._repository}/blobs/uploads/?{query}",
            scopes=pushing(self._repository, source),
        )
        try:
            answer = await self._registry.send(request)
        except ImageError as error:
            if error.kind in ("ImageUnauthorized", "ImageNotFound"):
                return False  # The source may not be read, or is gone; if it is the target, the upload will tell.
            raise
        if answer.status_code == 202:
            await self._cancel(self._location(answer))
        return answer.status_code == 201

    async def put(self, digest: str, size: int, content: Path | bytes) -> None:
        """Send a blob. What breaks off is taken up where it broke, or else sent again.

        Cancellation: the registry drops what it has got after a while.
        """
        backoff = Backoff(TRIES)
        url, sent = "", 0
        while True:
            try:
                if url and (position := await self._position(url)):
                    self._on_bytes(position - sent)
                    sent = position
                else:
                    self._on_bytes(-sent)
                    url, sent = await self._start(), 0
                sending = _Sending(content, sent, self._on_bytes)
                try:
                    url = await self._patch(url, sending, size)
                finally:
                    sent = sending.position
                await self._commit(url, digest)
                return
            except ImageError as error:
                if error.kind == "ImageUnauthorized" or not await backoff.pause():
                    raise
                if await self.has(digest):  # The blob has arrived, and only the answer was lost.
                    self._on_bytes(size - sent)
                    return

    async def manifest(self, tag: str, data: bytes, media_type: str, digest: str) -> None:
        """Put a manifest, of which all parts are there."""
        request = Request(
            method="PUT",
            target=f"/v2/{self._repository}/manifests/{tag}",
            scopes=self._scopes,
            headers={"content-type": media_type},
            content=lambda: data,
            silence=COMMIT,
        )
        answer = await self._registry.send(request)
        stored = answer.headers.get("docker-content-digest", digest)
        if stored != digest:
            message = f"{self._registry.name} has stored the manifest as {stored[:100]}, and it is {digest}"
            raise ImageError(message, kind="ImageExport")

    # One upload.

    async def _start(self) -> str:
        target = f"/v2/{self._repository}/blobs/uploads/"
        return self._location(
            await self._registry.send(Request(method="POST", target=target, scopes=self._scopes, content=lambda: b""))
        )

    async def _patch(self, url: str, sending: _Sending, size: int) -> str:
        if sending.position == size:
            return url
        headers = {"content-type": "application/octet-stream", "content-length": str(size - sending.position)}
        if sending.position:
            headers["content-range"] = f"{sending.position}-{size - 1}"
        request = Request(
            method="PATCH",
            target=url,
            scopes=self._scopes,
            headers=headers,
            content=sending.pieces,
            tries=1,
            silence=COMMIT,
        )
        return self._location(await self._registry.send(request))

    async def _commit(self, url: str, digest: str) -> None:
        target = f"{url}{'&' if '?' in url else '?'}{urlencode({'digest': digest})}"
        request = Request(
            method="PUT", target=target, scopes=self._scopes, content=lambda: b"", tries=1, silence=COMMIT
        )
        await self._registry.send(request)

    async def _position(self, url: str) -> int:
        """How much of an upload has arrived; 0: it must begin anew. A range of `0-0` is said of none as of one byte."""
        try:
            answer = await self._registry.send(Request(method="GET", target=url, scopes=self._scopes, tries=1))
        except ImageError:
            return 0
        match = _RANGE.fullmatch(answer.headers.get("range", ""))
        return int(match[1]) + 1 if match and int(match[1]) else 0

    async def _cancel(self, url: str) -> None:
        try:
            await self._registry.send(
                Request(method="DELETE", target=url, scopes=self._scopes, accepted=(404, 405), tries=1)
            )
        except ImageError:
            return  # The registry drops it by itself after a while.

    def _location(self, answer: httpx.Response) -> str:
        url = str(answer.request.url)
        location = answer.headers.get("location")
        if location is None:
            raise ImageError(f"{url.partition('?')[0]} does not say where to upload to", kind="ImageExport")
        return self._registry.locate(url, location)


class _Sending:
    """The rest of a blob, from a position on."""

    def __init__(self, content: Path | bytes, position: int, on_bytes: Callable[[int], None]) -> None:
        self.position: int = position
        self._begin = position
        self._content = content
        self._on_bytes = on_bytes

    async def pieces(self) -> AsyncIterator[bytes]:
        self._on_bytes(self._begin - self.position)
        self.position = self._begin
        while piece := await asyncio.to_thread(self._read):
            yield piece
            self.position += len(piece)
            self._on_bytes(len(piece))

    def _read(self) -> bytes:
        if isinstance(self._content, bytes):
            return self._content[self.position : self.position + PIECE]
        with self._content.open("rb", buffering=0) as file:
            file.seek(self.position)
            return file.read(PIECE)
