"""What the generated classes stand on: one bridge per client, and what a facade owes its users besides.

A `Bridge` ties an async client to a portal. It enters the client before the first call and leaves it on `close()`, so
the client's own tasks live and die on the portal. Every object that comes from a client holds the client's bridge.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import warnings
import weakref
from contextlib import AbstractAsyncContextManager
from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, overload

from ..errors import ClientClosedError
from ._call import Call, Stay
from ._portal import Portal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

__all__ = ["Batched", "Bridge", "Managed", "Root", "Twin", "unframed"]

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)
M = TypeVar("M", bound=AbstractAsyncContextManager[object])
B = TypeVar("B", bound="_Iterated[Any]")

_PACKAGE = os.path.join(os.path.dirname(__file__), "")


class _Unframed:
    """`with unframed:` takes this package's frames off the head of an exception's traceback."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
                traceback = traceback.tb_next
            error.__traceback__ = traceback


unframed = _Unframed()


class Bridge:
    """One async client on a portal. Its methods may be called from any thread."""

    def __init__(self, client: AbstractAsyncContextManager[object], portal: Portal | None) -> None:
        self._client = client
        self._portal = portal or Portal()
        self._shared = portal is not None
        self._lock = threading.RLock()
        self._stay: Stay | None = None
        self._closed = False
        _bridges.add(self)

    def open(self) -> None:
        """Enter the client, unless that happened before. Every call begins with it."""
        self._portal.loop()
        _warn_inside_a_loop()
        if self._stay is None:
            with self._lock:
                if self._closed:
                    raise ClientClosedError("the client is closed: make a new one")
                if self._stay is None:
                    self._stay = stay = Stay(self._portal, None, self._client)
                    try:
                        stay.enter()
                    finally:
                        if stay.over:
                            self._stay = None

    @overload
    def call(self, function: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...

    @overload
    def call(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `function(*args, **kwargs)` on the loop, and await what it gives if that can be awaited.

        Raises:
            ClientClosedError: the client is closed, or was closed during the call.
            ForkedClientError: the client was used before the process forked.
            LocalProtocolError: this is the portal's own thread.
        """
        self.open()
        return Call(self._portal, self._client, partial(function, *args, **kwargs)).run()

    @overload
    def call_owning(self, function: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...

    @overload
    def call_owning(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...

    def call_owning(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`call()` for an async context manager; an interrupt that comes too late to cancel leaves it again."""
        self.open()
        call = Call(self._portal, self._client, partial(function, *args, **kwargs))
        try:
            return call.run()
        except BaseException:
            if call.value is not None and not self._portal.forked:
                Call(self._portal, self._client, partial(call.value.__aexit__, *sys.exc_info())).run()
            raise

    def call_relaying(self, names: list[str], function: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """`call()` with the callbacks that `names` lists among `kwargs`; they run on this thread.

        A callback that raises cancels the call, and its exception goes on when the coroutine has cleaned up.

        Raises:
            TypeError: a callback is a coroutine function.
        """
        self.open()
        call = Call(self._portal, self._client, lambda: function(*args, **kwargs))
        kwargs |= {name: call.relay(kwargs[name]) for name in names if kwargs[name] is not None}
        result: T = call.run()
        return result

    def enter(self, manager: AbstractAsyncContextManager[object]) -> Stay:
        """Enter an async context manager."""
        self.open()
        return Stay(self._portal, self._client, manager).enter()

    def close(self) -> None:
        """End the calls of this client, leave the async client, and end the thread unless it is shared.

        May be called again. Calls in other threads end with `ClientClosedError`. After a fork it does nothing.
        """
        if self._portal.forked:
            return
        self._portal.refuse_own_thread()
        with self._lock:
            stay, self._stay, self._closed = self._stay, None, True
            try:
                if stay is not None and self._portal.running:
                    Call(self._portal, None, partial(self._portal.cancel, self._client)).run()
                    stay.exit()
            finally:
                if not self._shared:
                    self._portal.close()

    @property
    def unclosed(self) -> bool:
        """Whether the client is in use and nobody closed it."""
        return self._stay is not None and not self._portal.forked

    def warn_unclosed(self) -> None:
        """Say that nobody closed the client."""
        name = type(self._client).__name__.removeprefix("Async")
        warnings.warn(f"{name} was never closed: use it in `with`, or call close()", ResourceWarning, 2, source=self)

    def after_fork(self) -> None:
        """In the child, nobody else holds the lock."""
        self._lock = threading.RLock()

    def __del__(self) -> None:
        stay = getattr(self, "_stay", None)
        if stay is not None and self._portal.running:
            if self._shared:
                stay.abandon()
            else:
                self._portal.stop()
            self.warn_unclosed()


class Twin(Generic[T]):
    """Base of the generated classes: the async object that does the work, and the way to it."""

    def __init__(self, bridge: Bridge, twin: T) -> None:
        self._bridge = bridge
        self._async = twin

    def __repr__(self) -> str:
        return repr(self._async).replace(type(self._async).__name__, type(self).__name__)


class Managed(Twin[M]):
    """Base of those that can be entered, more than once too."""

    def __init__(self, bridge: Bridge, twin: M) -> None:
        super().__init__(bridge, twin)
        self._stays: list[Stay] = []

    def __enter__(self) -> Self:
        with unframed:
            self._stays.append(self._bridge.enter(self._async))
        return self

    def __exit__(self, *exc_info: object) -> bool | None:
        with unframed:
            return self._stays.pop().exit(*exc_info)


class _Iterated(AbstractAsyncContextManager[object], Protocol[Item]):
    """An async object that is iterated in batches; both halves of a handle share the place where iteration stands."""

    @property
    def _iterator(self) -> Iterator[Item]: ...
    async def _fill(self) -> bool: ...


class Batched(Managed[B], Generic[B, Item]):
    """Base of those that are iterated: the loop is crossed once for a batch, and any thread may take the next item."""

    def __init__(self, bridge: Bridge, twin: B) -> None:
        super().__init__(bridge, twin)
        self._filling = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        while True:
            iterator: Iterator[Item] = self._async._iterator
            for item in iterator:
                return item
            with unframed, self._filling:
                if not length_hint(self._async._iterator) and not self._bridge.call(self._async._fill):
                    raise StopIteration


class Root(Twin[M]):
    """Base of the clients, which own their bridge."""

    def __init__(self, client: M, portal: Portal | None) -> None:
        super().__init__(Bridge(client, portal), client)

    def __enter__(self) -> Self:
        with unframed:
            self._bridge.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with unframed:
            self._bridge.close()


_bridges: weakref.WeakSet[Bridge] = weakref.WeakSet()
_warned_inside_a_loop = False


def _warn_inside_a_loop() -> None:
    """Once in a process: calling the facade where an event loop runs blocks that loop."""
    global _warned_inside_a_loop
    if _warned_inside_a_loop:
        return
    trio = sys.modules.get("trio")
    if not (trio is not None and trio.lowlevel.in_trio_run()):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
    _warned_inside_a_loop = True
    warnings.warn(
        "the sync client is used where an event loop runs and blocks that loop with every call: "
        "use the async client there, or call from a worker thread",
        RuntimeWarning,
        stacklevel=5,
    )


def _after_fork() -> None:
    for bridge in list(_bridges):
        bridge.after_fork()


def _at_exit() -> None:
    for bridge in list(_bridges):
        if bridge.unclosed:
            bridge.warn_unclosed()


atexit.register(_at_exit)  # runs before the portals' own
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
