"""A thousand commands through one client, two hundred sandboxes on one server, and nothing left afterwards."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from sandbox_aio import AsyncSandboxClient
from tests.load import remains
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sandbox_aio import AsyncSandbox

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

SANDBOXES = 200
COMMANDS = 1000
HOSTS_OF_COMMANDS = 10
"""How many sandboxes the commands are spread over."""
STARTS_AT_ONCE = 50


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is looked at after its end: nothing that names its state may be left on the machine."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running
    state_dir = running.state_dir
    assert remains.wait_until_empty(lambda: remains.running(state_dir) + remains.mounted(state_dir)) == []
    left = {path.removeprefix(f"{state_dir}/") for path in remains.files(state_dir)}
    assert {path for path in left if not path.startswith("keys")} <= {"grants"}  # keys are the server's, and stay


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncSandboxClient]:
    async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY, timeout=60) as opened:
        yield opened


async def create(client: AsyncSandboxClient, count: int) -> list[AsyncSandbox]:
    """Return `count` new sandboxes, which are not deleted by themselves."""
    sandboxes: list[AsyncSandbox] = []
    limit = anyio.CapacityLimiter(STARTS_AT_ONCE)

    async def one() -> None:
        async with limit:
            sandboxes.append(await client.create_sandbox(snapshot="host"))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(one)
    return sandboxes


async def delete(client: AsyncSandboxClient, sandboxes: list[AsyncSandbox]) -> None:
    """Delete all `sandboxes` at once."""
    async with anyio.create_task_group() as tasks:
        for sandbox in sandboxes:
            tasks.start_soon(client.delete_sandbox, sandbox.name)


@asynccontextmanager
async def leaving_nothing(server: Server, client: AsyncSandboxClient) -> AsyncIterator[list[AsyncSandbox]]:
    """Delete the sandboxes that the block adds to the list, and assert that the machine is as it was before them."""
    await delete(client, await create(client, 1))  # What the server makes once and keeps is there now.
    before = remains.files(server.state_dir)
    sandboxes: list[AsyncSandbox] = []
    yield sandboxes
    await delete(client, sandboxes)
    ids = [str(sandbox.id) for sandbox in sandboxes]

    def found() -> list[str]:
        mounts = [line for line in remains.mounted(server.state_dir) if any(id in line for id in ids)]
        return mounts + remains.cgroups(ids) + sorted(remains.files(server.state_dir) - before)

    assert await anyio.to_thread.run_sync(remains.wait_until_empty, found) == []


async def test_a_thousand_commands_at_once(server: Server, client: AsyncSandboxClient) -> None:
    results: dict[int, str] = {}
    waiting = 0
    all_wait = anyio.Event()

    async def command(sandbox: AsyncSandbox, n: int) -> None:
        """Start a command, and let it go on only when all of them run."""
        nonlocal waiting
        handle = await sandbox.run("read line; echo $line", wait=False, timeout=0)
        waiting += 1
        if waiting == COMMANDS:
            all_wait.set()
        await all_wait.wait()
        await handle.send_input(f"{n}\n")
        results[n] = (await handle.result).stdout

    async with leaving_nothing(server, client) as sandboxes:
        sandboxes += await create(client, HOSTS_OF_COMMANDS)
        async with anyio.create_task_group() as tasks:
            for n in range(COMMANDS):
                tasks.start_soon(command, sandboxes[n % HOSTS_OF_COMMANDS], n)
    assert results == {n: f"{n}\n" for n in range(COMMANDS)}


async def test_two_hundred_sandboxes_at_once(server: Server, client: AsyncSandboxClient) -> None:
    outputs: dict[str, str] = {}

    async def command(sandbox: AsyncSandbox) -> None:
        await sandbox.write("name", sandbox.name)
        outputs[sandbox.name] = (await sandbox.run("cat name")).stdout

    async with leaving_nothing(server, client) as sandboxes:
        sandboxes += await create(client, SANDBOXES)
        async with anyio.create_task_group() as tasks:
            for sandbox in sandboxes:
                tasks.start_soon(command, sandbox)
    assert outputs == {sandbox.name: sandbox.name for sandbox in sandboxes}
    assert len(outputs) == SANDBOXES
