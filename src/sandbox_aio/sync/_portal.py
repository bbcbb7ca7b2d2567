"""A thread with an event loop, and calls into it that block their caller.

::

    the user's threads                                   the portal's thread
    SandboxClient, Sandbox, ... (generated)
         └─ Bridge, one per client ── Call ───────────>  a task on the loop: the async client's coroutine
                 the caller waits at its inbox  <──────  callbacks to run, then "over"

A `Portal` is the thread. A `Call` is one coroutine and the thread that waits for it; while it waits, the thread runs
the callbacks that the coroutine asks for. A `Stay` is an async context manager that one task enters and leaves.

Every wait ends the same way when it is interrupted, by Ctrl-C, by a signal handler or by a callback that raises: the
coroutine is cancelled, the thread waits until it has cleaned up, and the exception goes on. Another interrupt during
that second wait ends it at once.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import itertools
import os
import queue
import sys
import threading
import time
import weakref
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from anyio import CancelScope, Event

from ..errors import ClientClosedError, ForkedClientError, LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator
    from contextlib import AbstractAsyncContextManager

__all__ = ["Call", "Portal", "Stay"]

CLEANUP_SECONDS = 6.0
"""How long closing waits for cancelled calls; the async client bounds its own cleaning up by 5 s."""
EXIT_SECONDS = 0.5
"""How long the interpreter's exit waits for all that nobody closed."""
CALLBACK_BACKLOG = 1 << 20
"""Characters of output that may wait for the callbacks of one call; beyond it the command is held back."""
POLL_SECONDS = 0.1 if sys.platform == "win32" else None
"""Windows does not interrupt a wait for a lock by Ctrl-C, so there the wait is cut into pieces."""


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
        self._calls: set[Call] = set()
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
        await _cancel([call for call in list(self._calls) if call.group is group])

    def release_workers(self) -> None:
        """On the loop, once the main thread has ended: end AnyIO's idle worker threads when no others are left.

        They live as long as the loop's main task, and the interpreter waits for them; so the main task begins anew. The
        user's threads, which it waits for too, may still call.
        """
        if any(_belongs_to_user(thread) for thread in threading.enumerate()):
            asyncio.get_running_loop().call_later(0.02, self.release_workers)
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
        for call in list(self._calls):  # what came too late to run
            call.finish(asyncio.CancelledError())

    async def _serve(self) -> None:
        await self._wake.wait()
        self._wake.clear()
        if self._state is _State.CLOSED:
            await _cancel([call for call in list(self._calls) if call.group is not None])
            await _cancel(list(self._calls))  # and now the clients themselves


async def _cancel(calls: Collection[Call]) -> None:
    for call in calls:
        call.cancel()
    if tasks := [call.task for call in calls if call.task is not None]:
        await asyncio.wait(tasks, timeout=CLEANUP_SECONDS)


class Call:
    """One coroutine on a portal's loop, and the thread that waits for it.

    `group` is the client that the call belongs to, or None for what keeps a client itself.
    """

    def __init__(self, portal: Portal, group: object, function: Callable[[], Any]) -> None:
        self.group: object = group
        self.task: asyncio.Task[None] | None = None
        self.over: bool = False
        self.value: Any = None
        self._portal = portal
        self._function = function
        self._inbox: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._scope: CancelScope | None = None
        self._cancelled = False
        self._asked = self._answered = 0  # characters; the loop counts the one, the caller the other
        self._drained: Event | None = None

    # On the caller's thread.

    def run(self) -> Any:
        """Start, wait until it is over, and give its result or raise its error."""
        self.start()
        return self.result()

    def start(self) -> None:
        """Start, and wait until it is over or says `pause()`."""
        loop = self._portal.loop()
        self._portal._calls.add(self)
        self.proceed(self._begin, loop)

    def proceed(self, function: Callable[..., object], *args: Any) -> None:
        """Have a function called on the loop; then run callbacks until the call is over or says `pause()`."""
        try:
            if not self._portal.soon(function, *args):
                self.finish(asyncio.CancelledError())
            while (callback := self._receive()) is not None:
                callback()
                if self._portal.forked:  # by the callback, and this is the child
                    self._portal.loop()
        except BaseException:
            if not self._portal.forked and self._portal.soon(self.cancel):
                while not self.over:
                    self._receive()
            raise

    def result(self) -> Any:
        """Give what the coroutine returned, or raise what it raised.

        Raises:
            ClientClosedError: the call was cancelled because the client was closed.
        """
        error, self._error = self._error, None
        if isinstance(error, asyncio.CancelledError):
            raise ClientClosedError("the client was closed during this call")
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback leads back to this frame
        return self.value

    def _receive(self) -> Callable[[], object] | None:
        while True:
            try:
                return self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue

    def _answer(self, callback: Callable[[str], object], text: str) -> None:
        callback(text)
        self._answered += len(text)
        if (drained := self._drained) is not None and self._asked - self._answered <= CALLBACK_BACKLOG // 2:
            self._drained = None
            self._portal.soon(drained.set)

    # On the loop.

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self.over:
            self.task = loop.create_task(self._run())

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            with CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                value = self._function()
                self.value = await value if inspect.isawaitable(value) else value
            if self._scope.cancelled_caught:
                error = asyncio.CancelledError()
        except BaseException as raised:
            error = raised
        self.finish(error)
        del error  # its traceback leads back to this frame

    def finish(self, error: BaseException | None) -> None:
        """Note that the coroutine is over, or will never run."""
        self._portal._calls.discard(self)
        if not self.over:
            self._error, self.over = error, True
            self.pause()

    def pause(self) -> None:
        """Let the waiting thread go."""
        if not self._portal.exiting:
            self._inbox.put(None)

    def cancel(self) -> None:
        """Cancel the coroutine, whether it runs, is about to, or never will."""
        self._cancelled = True
        if self._scope is not None:
            self._scope.cancel()
        elif self.task is None:
            self.finish(asyncio.CancelledError())

    def relay(self, callback: Callable[[str], object]) -> Callable[[str], Awaitable[None]]:
        """Give an async callback for the loop, which has `callback` run by the waiting thread, in order.

        Raises:
            TypeError: `callback` is a coroutine function.
        """
        if inspect.iscoroutinefunction(callback):
            raise TypeError(f"the sync client calls plain functions, and {callback!r} is a coroutine function")

        async def ask(text: str) -> None:
            self._asked += len(text)
            self._inbox.put(partial(self._answer, callback, text))
            while self._asked - self._answered > CALLBACK_BACKLOG:
                self._drained = drained = Event()
                if self._asked - self._answered > CALLBACK_BACKLOG:
                    await drained.wait()

        return ask


class Stay:
    """An async context manager that one task of the portal enters and leaves."""

    def __init__(self, portal: Portal, group: object, manager: AbstractAsyncContextManager[object]) -> None:
        self._portal = portal
        self._manager = manager
        self._call = Call(portal, group, self._hold)
        self._leave = asyncio.Event()
        self._exc_info: tuple[Any, Any, Any] = (None, None, None)
        self._begun = self._entered = False

    def enter(self) -> Self:
        """Enter. Interrupted, it is left again before the interrupt goes on, even if it was not entered yet."""
        self._portal.loop()
        try:
            self._call.start()
        except BaseException:
            if not self._begun and not self._portal.forked:
                Call(self._portal, self._call.group, partial(self._manager.__aexit__, *sys.exc_info())).run()
            raise
        if not self._entered:
            self._call.result()
        return self

    def exit(self, kind: Any = None, error: Any = None, traceback: Any = None) -> bool | None:
        """Leave, and give what `__aexit__` gave. Does nothing if the portal left it already, or after a fork."""
        if self._portal.forked or self._call.over:
            return None
        self._portal.loop()
        self._exc_info = kind, error, traceback
        self._call.proceed(self._leave.set)
        try:
            suppressed: bool | None = self._call.result()
        except BaseException as raised:
            if raised is not error:
                raise
            raised.__traceback__ = traceback  # it went through, and `with` raises it again
            return None
        return suppressed

    def abandon(self) -> None:
        """Leave without waiting."""
        self._portal.soon(self._leave.set)

    async def _hold(self) -> bool | None:
        self._begun = True
        await self._manager.__aenter__()
        self._entered = True
        self._call.pause()
        try:
            await self._leave.wait()
        except BaseException:
            await self._manager.__aexit__(*sys.exc_info())
            raise
        return await self._manager.__aexit__(*self._exc_info)


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
