"""What `client.sandbox()` returns: await it for a sandbox, or enter it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

    from .sandbox import AsyncSandbox

__all__ = ["PendingSandbox"]


class PendingSandbox:
    """A sandbox that is made when this is awaited or entered, once.

    ::

        async with client.sandbox() as sandbox: ...
        async with await client.sandbox() as sandbox: ...
    """

    def __init__(self, create: Callable[[], Awaitable[AsyncSandbox]]) -> None:
        self._create: Callable[[], Awaitable[AsyncSandbox]] | None = create
        self._sandbox: AsyncSandbox | None = None

    def __await__(self) -> Generator[Any, Any, AsyncSandbox]:
        """Make the sandbox. Cancelled, nothing is left of it; see `AsyncSandboxClient.sandbox`.

        Raises:
            LocalProtocolError: It was made before.
        """
        create, self._create = self._create, None
        if create is None:
            raise LocalProtocolError("this sandbox was made already; call client.sandbox() for another one")
        return create().__await__()

    async def __aenter__(self) -> AsyncSandbox:
        self._sandbox = await self
        return self._sandbox

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Delete the sandbox."""
        if self._sandbox is not None:
            await self._sandbox.__aexit__(kind, error, traceback)
