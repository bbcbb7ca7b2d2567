"""What is measured: each workload does its work once and returns one number, of which less is better.

A workload is written once, against the calls that the two clients share, and is given whichever client it is to
measure. It checks what came back, so that a client cannot win by losing output.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable

import anyio

from benchmarks.images import IMAGE_WORKLOADS
from benchmarks.subject import Subject, expect
from benchmarks.tunnels import TUNNEL_WORKLOADS

Number = int | float | str

Workload = Callable[..., Awaitable[float]]


async def run(subject: Subject, command: str, size: int) -> float:
    """Return the seconds that a waited `run()` takes, with `size` characters of standard output in its result."""
    start = time.perf_counter()
    result = await subject.sandbox.run(command, timeout=0)
    got = len(result.stdout)
    seconds = time.perf_counter() - start
    expect((got, result.exit_code), (size, 0), command)
    return seconds


async def iterate(subject: Subject, command: str, size: int) -> float:
    """Return the seconds from `run(wait=False)` to the end of iterating over its output, none of which is kept."""
    start = time.perf_counter()
    handle = await subject.sandbox.run(command, timeout=0, wait=False)
    got = 0
    async for chunk in handle:
        got += len(chunk.data)
    seconds = time.perf_counter() - start
    expect(got, size, command)
    return seconds


async def resume(subject: Subject, command: str, size: int, drops: int) -> float:
    """Return the seconds that iterating takes for each of the `drops` times that the server hangs up."""
    return await iterate(subject, command, size) / drops


async def sequence(subject: Subject, command: str, times: int) -> float:
    """Return the seconds that one waited `run()` takes when `times` of them follow one another."""
    start = time.perf_counter()
    for _ in range(times):
        result = await subject.sandbox.run(command)
        expect(result.stdout, "hi\n", command)
    return (time.perf_counter() - start) / times


async def concurrent(subject: Subject, command: str, times: int, at_once: int) -> float:
    """Return the seconds that one waited `run()` takes, on average, when `at_once` of them are always under way."""

    async def work(count: int) -> None:
        await sequence(subject, command, count)

    start = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(work, times // at_once)
    return (time.perf_counter() - start) / times


async def echo(subject: Subject, times: int) -> float:
    """Return the median seconds from `send_input()` to the chunk that answers it."""
    handle = await subject.sandbox.run("echo", timeout=0, wait=False, close_input=False)
    chunks = handle.__aiter__()
    samples = []
    for _ in range(times):
        start = time.perf_counter()
        await handle.send_input("x")
        chunk = await chunks.__anext__()
        samples.append(time.perf_counter() - start)
        expect(chunk.data, "x", "echo")
    await handle.close_input()
    async for _ in chunks:
        pass
    return statistics.median(samples)


async def memory(subject: Subject, command: str, size: int) -> float:
    """Return the bytes by which iterating raises the process's peak of resident memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await iterate(subject, command, size)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


async def lifecycle(subject: Subject, snapshot: str) -> float:
    """Return the seconds that it takes to create a sandbox, run `true` in it, and delete it."""
    start = time.perf_counter()
    sandbox = await subject.client.create_sandbox(snapshot=snapshot)
    result = await sandbox.run("true")
    await subject.client.delete_sandbox(sandbox.name)
    seconds = time.perf_counter() - start
    expect(result.exit_code, 0, "true")
    return seconds


async def spawn(_: Subject | None, path: str) -> float:
    """Return the seconds that `posix_spawn` of `path` takes, including the wait for its end."""

    def blocking() -> float:
        start = time.perf_counter()
        _pid, status = os.waitpid(os.posix_spawn(path, [path], {}), 0)
        seconds = time.perf_counter() - start
        expect(status, 0, path)
        return seconds

    return blocking()


WORKLOADS: dict[str, Workload] = {
    workload.__name__: workload
    for workload in (
        run,
        iterate,
        resume,
        sequence,
        concurrent,
        echo,
        memory,
        lifecycle,
        spawn,
        *TUNNEL_WORKLOADS,
        *IMAGE_WORKLOADS,
    )
}
