"""What threads ask of a portal: a call, and a stay in an async context manager.

Every wait ends the same way when it is interrupted, by Ctrl-C, by a signal handler or by a callback that raises: the
coroutine is cancelled, the thread waits until it has cleaned up, and the exception goes on. Another interrupt during
that second wait ends it at once.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from anyio import CancelScope, Event

from ..errors import ClientClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from ._portal import Portal

__all__ = ["Call", "Stay"]

CALLBACK_BACKLOG = 1 << 20
"""Characters of output that may wait for the callbacks of one call; beyond it the command is held back."""
POLL_SECONDS = 0.1 if sys.platform == "win32" else None
"""Windows does not interrupt a wait for a lock by Ctrl-C, so there the wait is cut into pieces."""


class Call:
    """One coroutine on a portal's loop, and the thread that waits for it.

    `group` is the client that the call belongs to, or None for what keeps a client itself: an interrupt ends the wait
    for that, but not the call.
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

    def start(self, *, may_pause: bool = False) -> None:
        """Start, and wait until it is over, or says `pause()`."""
        loop = self._portal.loop()
        self._portal.calls.add(self)
        self.proceed(self._begin, loop, may_pause=may_pause)

    def proceed(self, function: Callable[..., object], *args: Any, may_pause: bool = False) -> None:
        """Have a function called on the loop; then run callbacks until the call is over, or says `pause()`."""
        try:
            if not self._portal.soon(function, *args):
                self.finish(asyncio.CancelledError())
            self._serve(may_pause)
        except BaseException:
            if self.group is not None and not self._portal.forked and self._portal.soon(self.cancel):
                while not self.over:
                    self._receive()
            raise

    def _serve(self, may_pause: bool) -> None:
        while True:
            callback = self._receive()
            if callback is not None:
                callback()
            elif self.over or may_pause:
                return
            if self._portal.forked:  # by the callback, and this is the child
                self._portal.loop()

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
        self._portal.calls.discard(self)
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

    @property
    def over(self) -> bool:
        """Whether it was left, or could not be entered."""
        return self._call.over

    def enter(self) -> Self:
        """Enter. Interrupted, it is left again before the interrupt goes on, even if it was not entered yet."""
        self._portal.loop()
        try:
            self._call.start(may_pause=True)
        except BaseException:
            if self._call.group is not None and not self._begun and not self._portal.forked:
                Call(self._portal, self._call.group, partial(self._manager.__aexit__, *sys.exc_info())).run()
            raise
        if not self._entered:
            self._call.result()
        return self

    def exit(self, kind: Any = None, error: Any = None, traceback: Any = None) -> bool | None:
        """Leave, and give what `__aexit__` gave. Does nothing if the portal left it already, or after a fork."""
        if self._portal.forked or self.over:
            return None
        self._portal.loop()
        self._exc_info = kind, error, traceback
        self._call.proceed(self._release)
        try:
            suppressed: bool | None = self._call.result()
        except BaseException as raised:
            if raised is not error:
                raise
            raised.__traceback__ = traceback  # it went through, and `with` raises it again
            return None
        return suppressed

    def _release(self) -> None:
        if self._call.task is None:  # an interrupt came before it was entered
            self._call.finish(None)
        self._leave.set()

    def abandon(self) -> None:
        """Leave without waiting."""
        self._portal.soon(self._release)

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
