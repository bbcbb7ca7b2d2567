"""Work that is cut short at any moment leaves nothing on a real server: neither sandboxes nor commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from sandbox_aio import AsyncSandboxClient
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sandbox_aio import AsyncSandbox

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

MOMENTS = [n * 0.002 for n in range(40)]
"""Seconds after which work is cut short: before it began, half-way through each of its steps, and when it is done."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncSandboxClient]:
    async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as opened:
        yield opened


async def sleepers(sandbox: AsyncSandbox) -> int:
    """Return how many processes in the sandbox go by the name of `sleeper`."""
    found = await sandbox.run("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx '[s]leeper'")
    return int(found.stdout)


async def test_a_sandbox_is_deleted(client: AsyncSandboxClient) -> None:
    for moment in MOMENTS:
        with anyio.move_on_after(moment):
            async with client.sandbox() as sandbox:
                await sandbox.run("sleep 1000")
        assert await client.list_sandboxes() == []


async def test_many_sandboxes_are_deleted(client: AsyncSandboxClient) -> None:
    async def live() -> None:
        async with client.sandbox() as sandbox:
            await sandbox.run("sleep 1000")

    for moment in MOMENTS[::8]:
        with anyio.move_on_after(moment):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(live)
        assert await client.list_sandboxes() == []


async def test_a_waited_command_is_killed(client: AsyncSandboxClient) -> None:
    async with client.sandbox() as sandbox:
        for moment in MOMENTS:
            with anyio.move_on_after(moment):
                await sandbox.run("exec -a sleeper sleep 1000", timeout=0)
        with anyio.fail_after(15):
            while await sleepers(sandbox):
                await anyio.sleep(0.05)


async def test_a_command_with_a_handle_runs_on(client: AsyncSandboxClient) -> None:
    async with client.sandbox() as sandbox:
        handle = await sandbox.run("exec -a sleeper sleep 1000", timeout=0, wait=False)
        for moment in MOMENTS[::4]:
            with anyio.move_on_after(moment):
                async for _ in handle:
                    pass
            with anyio.move_on_after(moment):
                await handle.result
        assert await sleepers(sandbox) == 1
        await handle.kill()
        assert (await handle.result).exit_code == 137
        assert await sleepers(sandbox) == 0


async def test_a_client_that_leaves_lets_its_commands_run_on(server: Server) -> None:
    async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as keeper, keeper.sandbox() as sandbox:
        async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
            same = await client.get_sandbox(sandbox.name)
            handle = await same.run("echo before; read line; echo $line", timeout=0, wait=False)
        again = await sandbox.reconnect(handle.command_id)
        await again.send_input("after\n")
        assert (await again.result).stdout == "before\nafter\n"
