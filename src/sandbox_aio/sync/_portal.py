"""A thread with an event loop, and what becomes of it at a fork and at the interpreter's exit.

::

    the user's threads                                   the portal's thread
    SandboxClient, Sandbox, ... (generated)
         └─ Bridge, one per client ── Call ───────────>  a task on the loop: the async client's coroutine
                 the caller waits at its inbox  <──────  callbacks to run, then "over"
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import sys
import threading
import time
import weakref
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..errors import ClientClosedError, ForkedClientError, LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from ._call import Call

__all__ = ["Portal"]

CLEANUP_SECONDS = 6.0
"""How long closing waits for cancelled calls; the async client bounds its own cleaning up by 5 s."""
EXIT_SECONDS = 0.5
"""How long the interpreter's exit waits for all that nobody closed."""


class _State(Enum):
    NEW = auto()
    RUNNING = auto()
    CLOSED = auto()
    FORKED = auto()
    """The thread stayed behind in the parent process."""


class Portal:
    """A thread with an event loop of its own, for the async halves of sync clients.

    Each client makes one for itself. To run several clients on one thread, share it::

        with Portal() as portal, SandboxClient(portal=portal) as a, SandboxClient(portal=portal) as b:
            ...

    The thread starts with the first call and is called `name`, by default `sandbox-aio-portal-N`.
    """

    _numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self, *, name: str | None = None) -> None:
        self.name: str = name or f"sandbox-aio-portal-{next(self._numbers)}"
        self.calls: set[Call] = set()
        self._state = _State.NEW
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._wake = asyncio.Event()
        self.exiting: bool = False
        """The interpreter exits. Callers that still wait are daemon threads: they are left to their sleep."""
        _portals.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs, wait until it has cleaned up, and end the thread. May be called again.

        Raises:
            LocalProtocolError: this is the portal's own thread.
        """
        self.refuse_own_thread()
        self.stop()
        self.join()

    def stop(self) -> None:
        """Do what `close()` does, without waiting."""
        with self._lock:
            was, self._state = self._state, _State.FORKED if self.forked else _State.CLOSED
        if was is _State.RUNNING:
            self.soon(self._wake.set)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, at most `timeout` seconds."""
        if self._thread is not None and not self.forked:
            self._thread.join(timeout)

    @property
    def running(self) -> bool:
        """Whether the thread runs."""
        return self._state is _State.RUNNING

    @property
    def forked(self) -> bool:
        """Whether the thread stayed behind in the parent process."""
        return self._state is _State.FORKED

    def loop(self) -> asyncio.AbstractEventLoop:
        """Give the running loop; the first call starts the thread.

        Raises:
            ForkedClientError: the thread runs in the parent process.
            ClientClosedError: the portal was closed.
            LocalProtocolError: this is the portal's own thread.
        """
        if self._state is _State.NEW:
            self._start()
        self.refuse_own_thread()
        if self.forked:
            raise ForkedClientError("this client was used before the process forked: make a new one in the child")
        if self._state is _State.CLOSED or self._loop is None:
            raise ClientClosedError("the client is closed: make a new one")
        return self._loop

    def soon(self, function: Callable[..., object], *args: Any) -> bool:
        """Have a function called on the loop, without waiting. False: the loop is gone."""
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            return False
        return True

    async def cancel(self, group: object) -> None:
        """Cancel the calls of this group and wait until they are over, at most `CLEANUP_SECONDS`."""
        await _cancel([call for call in list(self.calls) if call.group is group])

    def release_workers(self, delay: float = 0.01) -> None:
        """On the loop, once the main thread has ended: end AnyIO's idle worker threads when no others are left.

        They live as long as the loop's main task, and the interpreter waits for them; so the main task begins anew. The
        user's threads, which it waits for too, may still call; it looks for them again after `delay` seconds.
        """
        if any(_belongs_to_user(thread) for thread in threading.enumerate()):
            asyncio.get_running_loop().call_later(delay, self.release_workers, min(2 * delay, 0.2))
        else:
            self._wake.set()

    def after_fork(self) -> None:
        """In the child, a portal that was in use is lost; a fresh one may start a thread of the child's own."""
        if self._state is _State.RUNNING or self._lock.locked():
            self._state = _State.FORKED
        self._lock = threading.Lock()

    def refuse_own_thread(self) -> None:
        """Raise LocalProtocolError on the portal's own thread."""
        if self._thread is threading.current_thread():
            raise LocalProtocolError(
                f"the sync client was called on its own event loop (thread {self.name}), and would wait for itself for "
                "ever: call it from another thread, or use the async client there"
            )

    def _start(self) -> None:
        with self._lock:
            if self._state is _State.NEW:
                runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
                self._loop = runner.get_loop()
                self._thread = threading.Thread(target=self._run, args=(runner,), name=self.name, daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is on its way out
                    runner.close()
                    raise
                self._state = _State.RUNNING

    def _run(self, runner: asyncio.Runner) -> None:
        with runner:
            while self._state is not _State.CLOSED:
                runner.run(self._serve())
        for call in list(self.calls):  # what came too late to run
            call.finish(asyncio.CancelledError())

    async def _serve(self) -> None:
        await self._wake.wait()
        self._wake.clear()
        if self._state is _State.CLOSED:
            await _cancel([call for call in list(self.calls) if call.group is not None])
            await _cancel(list(self.calls))  # and now the clients themselves


async def _cancel(calls: Collection[Call]) -> None:
    for call in calls:
        call.cancel()
    if tasks := [call.task for call in calls if call.task is not None]:
        await asyncio.wait(tasks, timeout=CLEANUP_SECONDS)


_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


def _after_fork() -> None:
    for portal in list(_portals):
        portal.after_fork()


def _at_main_thread_end() -> None:
    for portal in _portals:
        if portal.running:
            portal.soon(portal.release_workers)


def _belongs_to_user(thread: threading.Thread) -> bool:
    is_worker = type(thread).__module__.startswith("anyio.")
    return not (thread.daemon or is_worker or thread is threading.main_thread())


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    portals = list(_portals)
    for portal in portals:
        portal.exiting = True
        portal.stop()
    for portal in portals:
        portal.join(max(0.0, deadline - time.monotonic()))


# Not public, but the only hook that runs before the interpreter waits for threads that are not daemons.
getattr(threading, "_register_atexit", lambda _: None)(_at_main_thread_end)
atexit.register(_at_exit)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
