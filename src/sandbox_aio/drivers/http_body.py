"""The bodies of HTTP requests, as httpx takes them.

None of them leaves an async generator behind when a request is cancelled half-way: trio would complain.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import anyio
import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

__all__ = ["Body", "UploadBody", "UploadSource", "WholeBody"]


class UploadSource(Protocol):
    """Bytes for an upload."""

    @property
    def size(self) -> int | None:
        """How many bytes there are, if that is known beforehand."""
        ...

    @property
    def replayable(self) -> bool:
        """Whether `pieces` may be called again after it was read from."""
        ...

    def pieces(self) -> AsyncGenerator[bytes]:
        """The bytes from the first on."""
        ...


class Body(httpx.AsyncByteStream):
    """The body of one attempt."""

    spent: bool = False
    """Whether its bytes are gone, so that there can be no other attempt."""

    @property
    def framing(self) -> dict[str, str]:
        """The header that tells where the body ends."""
        raise NotImplementedError


class WholeBody(Body):
    """Bytes in memory; None for no body."""

    def __init__(self, content: bytes | None) -> None:
        self._content = content

    @property
    def framing(self) -> dict[str, str]:
        return {} if self._content is None else {"content-length": str(len(self._content))}

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content)


class _Once:
    def __init__(self, content: bytes | None) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, None
        if not content:
            raise StopAsyncIteration
        return content


class UploadBody(Body):
    """A source between the two parts of a frame."""

    spent: bool = False

    def __init__(self, source: UploadSource, frame: tuple[bytes, bytes]) -> None:
        self._source = source
        self._frame = frame
        self._pieces = self._generate()

    @property
    def framing(self) -> dict[str, str]:
        if self._source.size is None:
            return {"transfer-encoding": "chunked"}
        return {"content-length": str(self._source.size + sum(map(len, self._frame)))}

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def _generate(self) -> AsyncGenerator[bytes]:
        head, tail = self._frame
        yield head
        self.spent = not self._source.replayable
        async with aclosing(self._source.pieces()) as pieces:
            async for piece in pieces:
                yield piece
        yield tail

    async def aclose(self) -> None:
        """Let go of the source."""
        with anyio.CancelScope(shield=True):
            await self._pieces.aclose()
