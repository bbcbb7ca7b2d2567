"""The same examples in async code: ours on asyncio and on trio, the official client on asyncio. See `test_sync.py`."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.examples.conftest import OFFICIAL, OFFICIAL_MARKS, OURS
from tests.examples.programs import BUILD_STDERR, BUILD_STDOUT, MAKEFILE, SERVER, TRAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


@pytest.fixture(
    params=[(OURS, "asyncio"), (OURS, "trio"), pytest.param((OFFICIAL, "asyncio"), marks=OFFICIAL_MARKS)],
    ids="-".join,
)
def setting(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The module that an example imports from, and its event loop."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def anyio_backend(setting: tuple[str, str]) -> str:
    return setting[1]


@pytest.fixture
def m(setting: tuple[str, str]) -> Any:
    return importlib.import_module(setting[0])


@pytest.fixture
def open_input(m: Any) -> dict[str, bool]:
    """What keeps a command's input open: with ours `wait=False` is enough, the official client wants an option."""
    return {} if m.__name__ == OURS else {"close_input": False}


@pytest.fixture
async def client(m: Any) -> AsyncIterator[Any]:
    async with m.AsyncSandboxClient() as opened:
        yield opened


@pytest.fixture
async def snapshot_id(client: Any) -> str:
    found: str = (await client.get_snapshot("host")).id
    return found


@pytest.fixture
async def sb(client: Any, snapshot_id: str) -> AsyncIterator[Any]:
    async with await client.sandbox(snapshot_id=snapshot_id) as made:
        await made.write("Makefile", MAKEFILE)
        await made.write("server.py", SERVER)
        for name in ("train.py", "background_job.py"):
            await made.write(name, TRAIN)
        yield made


async def test_e1_create_and_run(m: Any, snapshot_id: str) -> None:
    async with m.AsyncSandboxClient() as client, await client.sandbox(snapshot_id=snapshot_id) as sb:
        result = await sb.run("python -c 'print(2 + 2)'")
        assert result.stdout == "4\n"
        assert result.success is True


async def test_e2_results(sb: Any) -> None:
    result = await sb.run("echo 'Hello, World!'")
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello, World!\n", "", 0)
    assert result.success is True
    result = await sb.run("exit 1")
    assert (result.success, result.exit_code) == (False, 1)


async def test_e3_callbacks(sb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = await sb.run(
        "make build",
        timeout=600,
        on_stdout=lambda s: print(s, end=""),
        on_stderr=lambda s: print(s, end="", file=sys.stderr),
    )
    assert result.success
    assert tuple(capsys.readouterr()) == (BUILD_STDOUT, BUILD_STDERR)


async def test_e4_handle(sb: Any) -> None:
    handle = await sb.run("make build", timeout=600, wait=False)
    assert handle.command_id
    seen = {"stdout": "", "stderr": ""}
    async for chunk in handle:
        seen[chunk.stream] += chunk.data
    assert seen == {"stdout": BUILD_STDOUT, "stderr": BUILD_STDERR}
    assert (await handle.result).exit_code == 0


async def test_e5_input(sb: Any, open_input: dict[str, bool]) -> None:
    program = 'python -c \'name = input("Name: "); print(f"Hello {name}")\''
    handle = await sb.run(program, timeout=30, wait=False, **open_input)
    async for chunk in handle:
        if "Name:" in chunk.data:
            await handle.send_input("World\n")
    assert (await handle.result).stdout == "Name: Hello World\n"


async def test_e6_kill(sb: Any) -> None:
    handle = await sb.run("python server.py", timeout=0, wait=False)
    async for chunk in handle:
        if "Ready" in chunk.data:
            break
    await handle.kill()
    again = await sb.reconnect(handle.command_id)
    assert (await again.result).exit_code == 137


async def test_e7_reconnect_while_the_first_handle_is_never_read(sb: Any) -> None:
    handle = await sb.run("make build", timeout=600, wait=False)
    command_id = handle.command_id
    handle = await sb.reconnect(command_id)
    output = "".join([chunk.data async for chunk in handle if chunk.stream == "stdout"])
    result = await handle.result
    assert output == result.stdout == BUILD_STDOUT
    assert result.stderr == BUILD_STDERR


async def test_e8_files(sb: Any) -> None:
    await sb.write("/app/script.py", "print('Hello from file!')")
    assert (await sb.run("python /app/script.py")).stdout == "Hello from file!\n"
    assert (await sb.read("/app/script.py")).decode() == "print('Hello from file!')"
    await sb.write("/app/data.bin", b"\x00\x01\x02\x03")
    assert await sb.read("/app/data.bin") == b"\x00\x01\x02\x03"


async def test_e9_commands_that_outlive_their_handles(sb: Any) -> None:
    await sb.run("python train.py", timeout=0, idle_timeout=1800, ttl_seconds=3600, wait=False)
    await sb.run("python background_job.py", timeout=0, idle_timeout=-1, ttl_seconds=-1, wait=False)
    gc.collect()
    for log in ("train.py.log", "background_job.py.log"):
        first = await _grown(sb, log, 0)
        assert await _grown(sb, log, first) > first


async def _grown(sb: Any, log: str, size: int) -> int:
    """Return the size of `log` in bytes once it is larger than `size`."""
    with anyio.fail_after(15):
        while True:
            sizes = [entry.size_bytes for entry in await sb.ls("/home/user") if entry.path.endswith(f"/{log}")]
            if sizes and sizes[0] > size:
                return int(sizes[0])
            await anyio.sleep(0.02)


async def test_e9_kill_on_disconnect_is_accepted(sb: Any) -> None:
    assert (await sb.run("echo hi", kill_on_disconnect=True)).stdout == "hi\n"


async def test_e13_all_of_it(m: Any, snapshot_id: str) -> None:
    async with m.AsyncSandboxClient() as client:
        async with await client.sandbox(snapshot_id=snapshot_id) as sb:
            assert (await sb.run("python -c 'print(1 + 1)'")).stdout == "2\n"
            await sb.write("/app/test.txt", "async content")
            assert (await sb.read("/app/test.txt")).decode() == "async content"
            await sb.write("Makefile", MAKEFILE)
            handle = await sb.run("make build", timeout=600, wait=False)
            output = "".join([chunk.data async for chunk in handle])
            assert len(output) == len(BUILD_STDOUT + BUILD_STDERR)
            assert (await handle.result).success


async def test_e15_errors(m: Any, client: Any, snapshot_id: str) -> None:
    with pytest.raises(m.CommandTimeoutError):
        async with await client.sandbox(snapshot_id=snapshot_id) as sb:
            await sb.run("sleep 999", timeout=1)
    with pytest.raises(m.ResourceNotFoundError) as caught:
        await client.get_sandbox("no-such-sandbox")
    assert caught.value.resource_type == "sandbox"
    with pytest.raises(m.SandboxClientError):
        await client.delete_sandbox("no-such-sandbox")
