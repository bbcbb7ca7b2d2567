"""Threads that are told to stop when their caller is cancelled, and awaited."""

from __future__ import annotations

import asyncio
import threading

import pytest

from sandbox_aio.shielding import in_thread

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_what_the_thread_gives_or_raises_is_the_callers() -> None:
    def fail(stop: threading.Event) -> None:
        raise ValueError("no")

    assert await in_thread(lambda stop: stop.is_set()) is False
    with pytest.raises(ValueError, match="no"):
        await in_thread(fail)


@pytest.mark.parametrize("fails", [False, True])
async def test_cancellation_stops_the_thread_and_waits_for_it(fails: bool) -> None:
    begun, ended = threading.Event(), False

    def work(stop: threading.Event) -> None:
        nonlocal ended
        begun.set()
        assert stop.wait(30)
        ended = True
        if fails:
            raise ValueError("stopped")

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_a_second_cancellation_does_not_leave_the_thread_alone() -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        begun.set()
        assert go.wait(30)
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
