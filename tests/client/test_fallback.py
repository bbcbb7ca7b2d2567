"""A server without a websocket: commands go over HTTP, but only those whose meaning survives that."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio import (
    AsyncSandbox,
    AsyncSandboxClient,
    CommandTimeoutError,
    ExecutionResult,
    ResourceNotFoundError,
    SandboxConnectionError,
)
from tests.client.fake_service import FakeService, Reply, Request, error, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


class NoWebSocket:
    """A service whose one sandbox has only `/execute`."""

    def __init__(self) -> None:
        self.exists = True
        self.answer = Reply(json={"stdout": "out", "stderr": "err", "exit_code": 3})

    async def __call__(self, request: Request) -> Reply:
        """Answer a request."""
        if request.path == "/boxes/box/status" and self.exists:
            return Reply(json={"status": "ready"})
        if request.path == "/d/execute":
            return self.answer
        return error(404, "NotFound", f"no {request.path}")


@asynccontextmanager
async def sandbox() -> AsyncGenerator[tuple[NoWebSocket, AsyncSandbox, FakeService]]:
    plane = NoWebSocket()
    async with fake_service(plane) as server, AsyncSandboxClient(api_endpoint=server.url) as client:
        yield plane, AsyncSandbox.from_dict({"name": "box", "dataplane_url": f"{server.url}/d"}, client), server


async def test_a_waited_run_goes_over_http() -> None:
    async with sandbox() as (_, box, server):
        seen: list[str] = []

        async def on_stderr(text: str) -> None:
            seen.append(text)

        result = await box.run("make", timeout=5, cwd="/app", on_stdout=seen.append, on_stderr=on_stderr)
        assert result == ExecutionResult("out", "err", 3)
        assert seen == ["out", "err"]
        assert server.requests[-1].json == {"command": "make", "timeout": 5, "shell": "/bin/bash", "cwd": "/app"}


async def test_its_timeout_is_the_same_error() -> None:
    async with sandbox() as (plane, box, _):
        plane.answer = error(400, "CommandTimeout", "longer than 5 s")
        with pytest.raises(CommandTimeoutError) as caught:
            await box.run("sleep 9", timeout=5)
        assert caught.value.timeout == 5


@pytest.mark.parametrize(
    "options", [{"pty": True}, {"close_input": False}, {"kill_on_disconnect": True}, {"timeout": 0}]
)
async def test_what_http_cannot_do_is_refused(options: dict[str, Any]) -> None:
    async with sandbox() as (_, box, server):
        with pytest.raises(ValueError, match="this server has no websocket endpoint"):
            await box.run("make", **options)
        assert "/d/execute" not in [request.path for request in server.requests]


async def test_a_handle_needs_a_websocket() -> None:
    async with sandbox() as (_, box, _):
        with pytest.raises(SandboxConnectionError, match="this server has no websocket; use wait=True"):
            await box.run("make", wait=False)
        handle = await box.reconnect("id")
        with pytest.raises(ResourceNotFoundError):
            await handle.result


async def test_a_sandbox_that_is_gone_is_gone() -> None:
    async with sandbox() as (plane, box, server):
        plane.exists = False
        with pytest.raises(ResourceNotFoundError) as caught:
            await box.run("make")
        assert caught.value.resource_type == "sandbox"
        assert "/d/execute" not in [request.path for request in server.requests]
