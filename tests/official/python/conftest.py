"""The official client, async and blocking, and a fresh sandbox for every test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest
from langsmith.sandbox import AsyncSandboxClient, SandboxClient

from tests.official.python.blocking import Awaitable
from tests.serving import API_KEY, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HOST = "host"
"""The built-in snapshot, by name."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The official client closes its sockets and ends its threads when it is collected, so they outlive a test."""
    for item in items:
        if item.path.parent.name == "python" and item.path.parent.parent.name == "official":
            item.add_marker(pytest.mark.leaks("the official client closes what it opened when it is collected"))
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The official client is for asyncio only."""
    return "asyncio"


@pytest.fixture(params=["async", "sync"])
def make_client(request: pytest.FixtureRequest, server: Server) -> Callable[..., Any]:
    """Return a function that makes a client, with the options of its constructor, for scenarios to `async with`."""
    kind: Literal["async", "sync"] = request.param

    def make(**options: Any) -> Any:
        options = {"api_endpoint": server.endpoint, "api_key": API_KEY} | options
        return AsyncSandboxClient(**options) if kind == "async" else Awaitable(SandboxClient(**options))

    return make


@pytest.fixture
async def client(make_client: Callable[..., Any]) -> AsyncIterator[Any]:
    """A client of the server, with its key."""
    async with make_client() as opened:
        yield opened


@pytest.fixture
async def sandbox(client: Any) -> AsyncIterator[Any]:
    """A sandbox of the snapshot `host`."""
    async with await client.sandbox(snapshot=HOST) as made:
        yield made
