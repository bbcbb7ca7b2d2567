"""The same daemon as the first process of a real sandbox: the tests of this folder again, and what only PID 1 does."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from sandbox_aio.runtimes.namespaces.runtime import DAEMON_ENTRY
from tests.daemon import test_commands, test_http, test_terminal
from tests.daemon.process import SECRET, Daemon
from tests.runtimes.machine import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

_LOOKS_OUTSIDE = ("daemon.root", "daemon.process", "own_daemon", "wait_until_gone", "alive(", 'Path(f"/proc')
"""What shows in a test's source that it looks at the daemon's files or processes from outside, where they are
others.
"""


def _same_tests() -> dict[str, Any]:
    modules = (test_commands, test_http, test_terminal)
    functions = {name: test for module in modules for name, test in vars(module).items() if name.startswith("test_")}
    return {
        name: test
        for name, test in functions.items()
        if not any(mark in inspect.getsource(test) for mark in _LOOKS_OUTSIDE)
    }


globals().update(_same_tests())


def test_most_tests_are_the_same_in_a_sandbox() -> None:
    assert len(_same_tests()) > 50


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon of a sandbox."""
    state = tmp_path_factory.mktemp("state")
    with machine(state, daemon_entry=DAEMON_ENTRY) as made, made.sandbox(secret=SECRET) as sandbox:
        assert sandbox.address.path is not None
        yield Daemon(sandbox.address.path, Path("/home/user"))


LIST_PROCESSES = """
for folder in /proc/[0-9]*; do
    case $folder in
        /proc/1 | /proc/$$) ;;
        *) mapfile -d '' -t words <$folder/cmdline && echo "${words[*]:-a zombie}" ;;
    esac
done 2>/dev/null
"""


async def processes(daemon: Daemon) -> list[str]:
    """Return the command lines of all processes in the sandbox, zombies too, but for the daemon and what looks."""
    return (await daemon.run(LIST_PROCESSES)).stdout.splitlines()


async def test_the_daemon_is_the_first_process_and_alone(daemon: Daemon) -> None:
    assert await processes(daemon) == []


async def test_orphans_are_waited_for(daemon: Daemon) -> None:
    outcome = await daemon.run("(setsid sh -c 'sleep 0.05 & exit 3' >/dev/null 2>&1 &); true")
    assert outcome.exit_code == 0
    with anyio.fail_after(10):
        while await processes(daemon):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "way", ["setsid sleep 77 &", "(setsid env -i sleep 77 &)", "(env -i setsid sh -c 'sleep 77 &' &)"]
)
async def test_a_kill_leaves_nothing(daemon: Daemon, way: str) -> None:
    async with daemon.execute(f"{way}\nsleep 77") as session:
        await session.started()
        with anyio.fail_after(10):
            while (await processes(daemon)).count("sleep 77") < 2:
                await asyncio.sleep(0.01)
        await session.send("kill")
        assert (await session.outcome()).exit_code == 137
    assert await processes(daemon) == []


async def test_a_command_cannot_lose_its_mark(daemon: Daemon) -> None:
    program = "import resource; h = resource.getrlimit(15)[1]; resource.setrlimit(15, (h, h)); "
    program += "resource.setrlimit(15, (h, h + 1))"
    outcome = await daemon.run(f'python3 -c "{program}"')

    assert "not allowed to raise maximum limit" in outcome.stderr


@pytest.mark.root
async def test_another_user_can_be_killed_too(daemon: Daemon) -> None:
    config = {"user": "nobody", "work_dir": "/"}
    async with daemon.execute("setsid sleep 77 & id -un; sleep 77", run_config=config) as session:
        await session.started()
        await session.output_until("nobody\n")
        await session.send("kill")
        assert (await session.outcome()).exit_code == 137
    assert await processes(daemon) == []


async def test_files_belong_to_the_sandbox(daemon: Daemon) -> None:
    async with daemon.http() as client:
        await client.post("/upload", params={"path": "new/file"}, files={"file": b"content"})
        assert (await daemon.run("cat /home/user/new/file")).stdout == "content"
        await daemon.run("ln -s /../../../../etc/hostname /home/user/link")
        hostname = (await client.get("/download", params={"path": "link"})).text
        assert hostname == (await daemon.run("cat /etc/hostname")).stdout
        assert hostname.strip() == "box"
        response = await client.post("/glob", json={"pattern": "**", "path": "/home/user"})
        assert [match["path"] for match in response.json()["matches"]] == [
            f"/home/user/{name}" for name in ("link", "new", "new/file")
        ]
        response = await client.post("/grep", json={"pattern": "conten", "path": "/home/user"})
        assert [match["path"] for match in response.json()["matches"]] == ["/home/user/new/file"]


async def test_a_command_may_stop_its_sandboxs_daemon_from_nothing(daemon: Daemon) -> None:
    outcome = await daemon.run("for signal in HUP INT QUIT KILL STOP USR1 PIPE; do kill -$signal 1; done; echo sent")

    assert outcome.stdout == "sent\n"
    assert (await daemon.run("echo alive")).stdout == "alive\n"
