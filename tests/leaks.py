"""A test leaves nothing behind: the fixtures here compare what the process holds before and after each test.

Threads, child processes and file descriptors are counted around every test, and for an async test also the tasks of its
event loop. What is still winding down gets ``GRACE`` seconds. A fixture of a wider scope than the test is set up before
the first count, so a server shared by a module is not taken for a leak.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
import trio.lowlevel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

GRACE = 3.0
"""How long a test's threads, descriptors and children may take to go, in seconds."""

_CACHED_THREADS = ("Trio thread", "asyncio_")
"""Names of threads that the event loops keep to use again, for name look-ups among other things."""

_ANYIO_RUNNER = "TestRunner."
"""What the coroutines of anyio's pytest plugin are methods of; it starts its task when it first needs it."""


def held_by_process() -> frozenset[str]:
    """Describe every thread, child process and open file descriptor of this process, one string each."""
    threads = {
        f"thread {thread.name} ({thread.ident})"
        for thread in threading.enumerate()
        if not thread.name.startswith(_CACHED_THREADS)
    }
    return frozenset(threads | _children() | _descriptors())


def _children() -> set[str]:
    children = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue
        children |= {f"child process {pid}" for pid in pids}
    return children


def _descriptors() -> set[str]:
    descriptors = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            descriptors.add(f"file descriptor {entry.name} ({entry.readlink()})")
        except OSError:
            continue  # the descriptor of this very listing
    return descriptors


def held_by_loop(backend: str) -> frozenset[str]:
    """Describe every task of the running event loop, which is of `backend`, one string each."""
    if backend == "asyncio":
        tasks_by_name = {f"task {task.get_name()}: {task.get_coro()!r}" for task in asyncio.all_tasks()}
        return frozenset(name for name in tasks_by_name if _ANYIO_RUNNER not in name)
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks, found = [root], []
    while tasks:
        task = tasks.pop()
        found.append(f"task {task.name} ({id(task)})")
        tasks.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return frozenset(found)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Generator[None]:
    """Fail a test that leaves a thread, a child process, a file descriptor or a task behind."""
    if request.node.get_closest_marker("leaks"):
        yield
        return
    if "anyio_backend" in request.fixturenames and request.node.get_closest_marker("anyio"):
        request.getfixturevalue("no_task_left")
    before = held_by_process()
    yield
    deadline = time.monotonic() + GRACE
    while (left := held_by_process() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, "left behind by the test: " + ", ".join(map(_with_command_line, sorted(left)))


def _with_command_line(name: str) -> str:
    """Add to the name of a process what it runs; only now, since a process that was just made may not know it yet."""
    kind, _, pid = name.rpartition(" ")
    if kind != "child process":
        return name
    try:
        return f"{name} ({Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')})"
    except OSError:
        return name


@pytest.fixture
async def no_task_left(anyio_backend_name: str) -> AsyncGenerator[None]:
    """Fail an async test that leaves a task behind in its event loop."""
    before = held_by_loop(anyio_backend_name)
    yield
    with anyio.move_on_after(GRACE):
        while held_by_loop(anyio_backend_name) - before:
            await anyio.sleep(0.01)
    left = held_by_loop(anyio_backend_name) - before
    assert not left, "left behind by the test: " + ", ".join(sorted(left))
