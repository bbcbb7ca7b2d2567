"""The endpoint `local`: a server that starts when it is needed and dies with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from sandbox_aio import AsyncSandboxClient, EmbeddedServerError, ResourceNotFoundError
from sandbox_aio.client import embedded
from sandbox_aio.client.embedded import EmbeddedServer

pytestmark = pytest.mark.anyio

READY = '{"endpoint": "http://127.0.0.1:9/api/v2/sandboxes", "api_key": "k"}'


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run this Python text instead of the server."""
    program = [f"print('{READY}', flush=True); import sys; sys.stdin.read()"]

    class Command(tuple[str, ...]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter((sys.executable, "-c", program[0]))

    monkeypatch.setattr(embedded, "_COMMAND", Command())
    return program


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


async def test_it_starts_once_for_many_and_ends_with_its_client(stand_in: list[str]) -> None:
    server = EmbeddedServer()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(server.start)
    assert server.running
    service = await server.start()
    assert (service.endpoint, service.api_key) == ("http://127.0.0.1:9/api/v2/sandboxes", "k")
    process = server._process
    assert process is not None
    await server.aclose()
    await server.aclose()
    assert process.returncode == 0
    assert not server.running


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ('print(\'{"error": "no namespaces.", "hint": "be root"}\')', "no namespaces. Hint: be root"),
        ('print(\'{"error": "no.", "hint": ""}\')', "no."),
        ("print('hello')", "the embedded server ended before it was ready"),
        ("print('[]')", "the embedded server ended before it was ready"),
        ("raise SystemExit(3)", "pip install 'sandbox-aio[server]'"),
        ("print('x' * 100_000)", "the embedded server ended before it was ready"),
    ],
)
async def test_what_keeps_it_from_starting_is_said(stand_in: list[str], program: str, message: str) -> None:
    stand_in[0] = program
    async with AsyncSandboxClient(api_endpoint="local") as client:
        with pytest.raises(EmbeddedServerError) as caught:
            await client.list_sandboxes()
        assert message in str(caught.value)


async def test_a_silent_one_is_given_up(stand_in: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in[0] = "import sys; sys.stdin.read()"
    monkeypatch.setattr(embedded, "_START_SECONDS", 0.2)
    with pytest.raises(EmbeddedServerError, match=r"not ready within 0\.2 s"):
        await EmbeddedServer().start()


async def test_one_that_does_not_end_is_killed(stand_in: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in[0] = f"print('{READY}', flush=True); import time; time.sleep(60)"
    monkeypatch.setattr(embedded, "_STOP_SECONDS", 0.2)
    server = EmbeddedServer()
    await server.start()
    process = server._process
    assert process is not None
    await server.aclose()
    assert process.returncode == -signal.SIGKILL


async def test_an_interpreter_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_COMMAND", ("/nowhere/python",))
    with pytest.raises(EmbeddedServerError, match="could not be started"):
        await EmbeddedServer().start()


async def test_cancelling_the_start_leaves_no_process(stand_in: list[str]) -> None:
    stand_in[0] = "import sys; sys.stdin.read()"
    before = children()
    with anyio.move_on_after(0.3) as scope:
        await EmbeddedServer().start()
    assert scope.cancelled_caught
    assert children() == before


async def test_the_real_one_serves_and_leaves_nothing() -> None:
    async with AsyncSandboxClient(api_endpoint="local") as client:
        async with client.sandbox() as sandbox:
            result = await sandbox.run("echo $((40 + 2))")
            assert (result.stdout, result.exit_code) == ("42\n", 0)
            settings = client._service.settings
            assert settings["api_endpoint"].startswith("http://127.0.0.1:")
            async with AsyncSandboxClient(**settings) as other:
                assert (await other.get_sandbox(sandbox.name)).id == sandbox.id
        with pytest.raises(ResourceNotFoundError):
            await client.get_sandbox(sandbox.name)


async def test_it_dies_with_an_owner_that_is_killed() -> None:
    program = (
        "import anyio, os, signal\n"
        "from sandbox_aio import AsyncSandboxClient\n"
        "async def main():\n"
        "    client = AsyncSandboxClient(api_endpoint='local')\n"
        "    await client.create_sandbox()\n"
        "    print(client._service._server._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "anyio.run(main)\n"
    )
    owner = await anyio.run_process([sys.executable, "-c", program], check=False, stderr=subprocess.DEVNULL)
    pid = int(owner.stdout)
    deadline = time.monotonic() + 15
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        await anyio.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
