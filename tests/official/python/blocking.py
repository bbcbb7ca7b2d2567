"""Lets a scenario be written once, as async code, and be played with the blocking client as well.

`Awaitable(object)` has the methods of `object` as coroutine functions, and its iterator as an async one. What they
return is wrapped in the same way if it has methods of its own. They block, which the server, another process, does not
mind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langsmith.resources.sandboxes.registries import RegistriesResource
from langsmith.sandbox import CommandHandle, Sandbox, SandboxClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WRAPPED = (SandboxClient, Sandbox, CommandHandle, RegistriesResource)


class Awaitable:
    """The async face of a blocking client, sandbox or handle."""

    def __init__(self, blocking: Any) -> None:
        self._blocking = blocking

    def __getattr__(self, name: str) -> Any:
        if name == "result":  # a property here, and an awaitable in the async client
            return self._call(getattr, self._blocking, name)
        value = getattr(self._blocking, name)
        if not callable(value):
            return _wrapped(value)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._call(value, *args, **kwargs)

        return call

    @staticmethod
    async def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        if isinstance(value, list):
            return [_wrapped(item) for item in value]
        return _wrapped(value)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self._blocking:
            yield item

    async def __aenter__(self) -> Awaitable:
        self._blocking.__enter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._blocking.__exit__(*error)


def _wrapped(value: Any) -> Any:
    return Awaitable(value) if isinstance(value, WRAPPED) else value
