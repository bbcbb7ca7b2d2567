"""A whole server over a fake runtime. asyncio only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from sandbox_aio.server.serve import Ready, Server, ServerConfig
from tests.server.fakes import FakeRuntime
from tests.server.service import Service, a_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = "key-for-tests"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
async def server(runtime: FakeRuntime, tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(ServerConfig(state_dir=tmp_path, api_keys=(KEY, "another")), runtime)
    server.ready = await server.open()  # type: ignore[attr-defined]
    yield server
    await server.aclose()


@pytest.fixture
def ready(server: Server) -> Ready:
    return server.ready  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
async def http(ready: Ready) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the control plane with the right key."""
    async with httpx.AsyncClient(base_url=ready.endpoint, headers={"x-api-key": KEY}, timeout=10) as client:
        yield client


@pytest.fixture
async def service(server: Server, ready: Ready, runtime: FakeRuntime) -> Service:
    """A sandbox with a recording program on a port."""
    return await a_service(server, ready, runtime, KEY)
