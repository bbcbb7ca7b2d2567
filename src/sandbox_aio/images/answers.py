"""Reading what registries answer, as it is on the wire."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import httpx

__all__ = ["raw_body", "retry_after"]


@contextlib.asynccontextmanager
async def raw_body(response: httpx.Response) -> AsyncIterator[AsyncGenerator[bytes]]:
    """The pieces of a body, not decoded. They can be left and taken up again within the block."""
    async with contextlib.aclosing(cast("AsyncGenerator[bytes]", response.aiter_raw())) as pieces:
        yield pieces


def retry_after(response: httpx.Response) -> float:
    """The seconds that an answer asks to wait."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
