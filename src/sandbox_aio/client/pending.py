"""What a call returns whose result is awaited, or entered as a context."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

__all__ = ["Pending"]

T = TypeVar("T", bound=AbstractAsyncContextManager[Any])


class Pending(Generic[T]):
    """Something that is made when this is awaited or entered, once. Leaving the block leaves it, too.

    ::

        async with client.sandbox() as sandbox: ...
        async with await client.sandbox() as sandbox: ...
    """

    def __init__(self, make: Callable[[], Awaitable[T]], made_already: str) -> None:
        """`made_already` is what the error says when this is used a second time."""
        self._make: Callable[[], Awaitable[T]] | None = make
        self._made_already = made_already
        self._made: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        """Make it. Cancelled, nothing is left of it.

        Raises:
            LocalProtocolError: It was made before.
        """
        make, self._make = self._make, None
        if make is None:
            raise LocalProtocolError(self._made_already)
        return make().__await__()

    async def __aenter__(self) -> T:
        self._made = await self
        return self._made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave what was made, as its own block would."""
        if self._made is not None:
            await self._made.__aexit__(kind, error, traceback)
