"""Commands in isolated sandboxes on this machine: from asyncio, from trio, and from plain Python. Run by `make demo`.

The endpoint `local` starts a server that lives as long as the client does. Everything else would be the same with a
server somewhere else. The program asserts what it shows, so that it ends with an error if anything is wrong.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import anyio

from sandbox_aio import AsyncSandbox, AsyncSandboxClient, Sandbox, SandboxClient

ISOLATION = """
echo "its user is $(id -un), who is uid $(awk 'NR == 1 {print $2}' /proc/self/uid_map) outside"
interfaces=$(awk -F: 'NR > 2 {print $1}' /proc/net/dev | xargs)
echo "it sees $(ls -d /proc/[0-9]* | wc -l) processes, and of the network: $interfaces"
grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | xargs
"""
COUNT = "for n in 1 2 3; do echo line $n; sleep 0.2; done"
ASK = "printf 'What is your name? '; read name; echo Hello, $name!"
SLEEP = "echo asleep; sleep 1000"
GREET = "print('Hello from a file!')"
WATCH = """
import sys
from sandbox_aio import SandboxClient
endpoint, key, sandbox, command, cursor = sys.argv[1:]
with SandboxClient(api_endpoint=endpoint, api_key=key) as client:
    handle = client.get_sandbox(sandbox).reconnect(command, stdout_offset=int(cursor))
    for chunk in handle:
        print(f"           process 2 reads {chunk.data!r} from byte {chunk.offset} on", flush=True)
    sys.exit(handle.result.exit_code)
"""
"""What the second process runs: all that it knows of the command is its id, and how much of the output was read."""

BEGINNING = time.monotonic()


def say(text: str) -> None:
    """Print `text` with the seconds since the program began."""
    print(f"  {time.monotonic() - BEGINNING:6.3f} s  {text}", flush=True)


async def show_async(loop: str) -> None:
    """Show everything, on whatever event loop this runs on."""
    print(f"\nOn {loop}:")
    async with AsyncSandboxClient(api_endpoint="local") as client:
        await client.list_sandboxes()
        say("the embedded server is up")
        before = time.monotonic()
        async with client.sandbox() as sandbox:
            say(f"the sandbox {sandbox.name} was made in {(time.monotonic() - before) * 1000:.0f} ms")
            await show_commands(sandbox)
            await show_reconnect(client, sandbox)
            await show_many(sandbox)
        assert sandbox.name not in [left.name for left in await client.list_sandboxes()]
        say("the sandbox is deleted")


async def show_commands(sandbox: AsyncSandbox) -> None:
    """Show isolation, streamed output, input, kill, and files."""
    for line in (await sandbox.run(ISOLATION)).stdout.splitlines():
        say(line)

    before = time.monotonic()
    handle = await sandbox.run(COUNT, wait=False)
    first = None
    async for chunk in handle:
        first = first or time.monotonic() - before
        say(f"streamed: {chunk.data!r}")
    assert first is not None
    assert first < 0.4 < time.monotonic() - before, "the output came at the end, not as it was written"

    handle = await sandbox.run(ASK, wait=False)
    async for chunk in handle:
        if chunk.data.endswith("? "):
            await handle.send_input("World\n")
    result = await handle.result
    assert result.stdout == "What is your name? Hello, World!\n"
    say(f"asked and answered: {result.stdout!r}")

    handle = await sandbox.run(SLEEP, wait=False, timeout=0)
    await handle.kill()
    result = await handle.result
    assert (result.exit_code, result.killed) == (137, True)
    say(f"killed: exit code {result.exit_code}")

    await sandbox.write("greet.py", GREET)
    assert await sandbox.read("greet.py") == GREET.encode()
    result = await sandbox.run("python greet.py")
    assert result.stdout == "Hello from a file!\n"
    say(f"written, read and run: {result.stdout!r}")


async def show_reconnect(client: AsyncSandboxClient, sandbox: AsyncSandbox) -> None:
    """Show that another process can go on where this one stopped reading."""
    handle = await sandbox.run("echo one; read go; echo two; exit 3", wait=False)
    async for chunk in handle:
        say(f"process 1 reads {chunk.data!r}")
        break
    arguments = [client.api_endpoint, client.api_key or "", sandbox.name]
    arguments += [handle.command_id, str(handle.last_stdout_offset)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle.send_input, "\n")
        ended = await anyio.run_process(
            [sys.executable, "-c", WATCH, *arguments], stdout=None, stderr=None, check=False
        )
    assert ended.returncode == 3
    say(f"process 2 saw the end: exit code {ended.returncode}")


async def show_many(sandbox: AsyncSandbox) -> None:
    """Show fifty commands at once."""
    outputs: list[str] = []

    async def square(n: int) -> None:
        outputs.append((await sandbox.run(f"echo $(({n} * {n}))")).stdout)

    before = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(square, n)
    assert sorted(map(int, outputs)) == [n * n for n in range(50)]
    say(f"fifty commands at once took {time.monotonic() - before:.3f} s")


def show_sync() -> None:
    """Show the same without `await`."""
    print("\nIn plain Python:")
    with SandboxClient(api_endpoint="local") as client, client.sandbox() as sandbox:
        say(f"the sandbox {sandbox.name} is there")
        for chunk in sandbox.run(COUNT, wait=False):
            say(f"streamed: {chunk.data!r}")
        handle = sandbox.run(ASK, wait=False)
        handle.send_input("World\n")
        assert handle.result.stdout.endswith("Hello, World!\n")
        handle = sandbox.run(SLEEP, wait=False, timeout=0)
        handle.kill()
        assert handle.result.exit_code == 137
        say("asked and answered; killed: exit code 137")
        sandbox.write("greet.py", GREET)
        say(f"written and run: {sandbox.run('python greet.py').stdout!r}")
        show_many_sync(sandbox)


def show_many_sync(sandbox: Sandbox) -> None:
    """Show fifty commands at once, from threads."""
    before = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(lambda n: sandbox.run(f"echo $(({n} * {n}))"), range(50)))
    assert [int(result.stdout) for result in results] == [n * n for n in range(50)]
    say(f"fifty commands at once took {time.monotonic() - before:.3f} s")


def main() -> None:
    """Show it three times."""
    for loop in ("asyncio", "trio"):
        anyio.run(show_async, loop, backend=loop)
    show_sync()
    print("\nThat was all of it.")


if __name__ == "__main__":
    main()
