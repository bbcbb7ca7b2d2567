"""Makes a sandbox such that none is left behind, wherever the making is cut short.

The client chooses the name, so that a sandbox can be deleted by it even if nobody heard that it was made. When the
caller is cancelled, the request has a moment left to be answered, as a deletion that overtakes it would find nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio
import attrs

from ..drivers.http import HttpDriver
from ..errors import (
    QuotaExceededError,
    ResourceAlreadyExistsError,
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxRetryableConnectionError,
    ValidationError,
)
from ..models import SandboxRecord
from ..protocol.http_requests import BoxOptions, ControlPlane
from .ids import new_sandbox_name
from .waiting import wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..protocol.http_call import HttpCall

__all__ = ["CLEAN_UP_SECONDS", "Creation", "delete_quietly"]

CLEAN_UP_SECONDS = 5.0
"""How long a cancelled caller may be held up, all in all, by making sure that no sandbox is left."""
_ANSWER_SECONDS = 3.0
"""How much of it the answer to the creation may take."""
_LOOK_AGAIN_SECONDS = 0.1
_POLL_SECONDS = 1.0

_log = logging.getLogger(__name__)

_NOTHING_WAS_MADE = (
    QuotaExceededError,
    ResourceAlreadyExistsError,
    SandboxAuthenticationError,
    SandboxRetryableConnectionError,
    ValidationError,
)
"""Errors after which there is certainly nothing to delete."""


@attrs.define(kw_only=True, eq=False)
class Creation:
    """The making of one sandbox."""

    control: ControlPlane
    http: HttpDriver
    headers: Mapping[str, str] | None
    options: BoxOptions
    name: str | None
    """The caller's choice; None for a name that nobody else can have chosen."""
    wait_for_ready: bool
    timeout: float
    """How long the server may wait for the sandbox to be ready, in seconds."""
    _patience: anyio.CancelScope = attrs.field(init=False, factory=lambda: anyio.CancelScope(shield=True))
    _over: anyio.Event = attrs.field(init=False, factory=anyio.Event)
    _record: SandboxRecord | None = attrs.field(init=False, default=None)
    _error: Exception | None = attrs.field(init=False, default=None)
    _was_missing: bool = attrs.field(init=False, default=False)

    async def run(self) -> SandboxRecord:
        """Make the sandbox.

        Cancelled, it deletes what was made, within `CLEAN_UP_SECONDS`. If it fails, a sandbox whose name only we know
        is deleted likewise; one that the caller named is left to the caller.
        """
        name = self.name or new_sandbox_name()
        call = self.control.create_box(
            self.options,
            name=name,
            name_is_unique=self.name is None,
            wait_for_ready=self.wait_for_ready,
            timeout=self.timeout,
        )
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, name, call)
                await self._wait()
        except anyio.get_cancelled_exc_class():
            await self._undo(name, self._patience.deadline - _ANSWER_SECONDS + CLEAN_UP_SECONDS)
            raise
        if self._error is not None:
            if self.name is None:
                await self._undo(name, anyio.current_time() + CLEAN_UP_SECONDS)
            raise self._error
        assert self._record is not None
        return self._record

    async def _wait(self) -> None:
        try:
            await self._over.wait()
        except anyio.get_cancelled_exc_class():
            self._patience.deadline = anyio.current_time() + _ANSWER_SECONDS
            raise

    async def _send(self, name: str, call: HttpCall[SandboxRecord]) -> None:
        with self._patience:
            try:
                self._record = await self._make(name, call)
            except Exception as error:
                self._error = error
        self._over.set()

    async def _make(self, name: str, call: HttpCall[SandboxRecord]) -> SandboxRecord:
        """Send the creation. If a name of ours is taken, an attempt whose answer was lost took it."""
        try:
            return await self.http.call(call, self.headers)
        except ResourceAlreadyExistsError:
            if self.name is not None:
                raise
        if self.wait_for_ready:
            await wait_until_ready(
                lambda: self.http.call(self.control.box_status(name), self.headers),
                what="sandbox",
                name=name,
                timeout=self.timeout,
                poll_interval=_POLL_SECONDS,
            )
        return await self.http.call(self.control.get_box(name), self.headers)

    async def _undo(self, name: str, deadline: float) -> None:
        if isinstance(self._error, _NOTHING_WAS_MADE):
            return
        with anyio.CancelScope(shield=True, deadline=deadline) as scope:
            try:
                while not await self._deleted(name):  # noqa: ASYNC110 - what it waits for is far away
                    await anyio.sleep(_LOOK_AGAIN_SECONDS)
            except SandboxClientError as error:
                _log.warning("the sandbox %r may be left behind: %s", name, error)
        if scope.cancelled_caught:
            _log.warning("the sandbox %r may be left behind: it could not be deleted in time", name)

    @property
    def _answered(self) -> bool:
        """Whether the server is done with our request."""
        error = self._error
        return self._record is not None or (error is not None and not isinstance(error, SandboxConnectionError))

    async def _deleted(self, name: str) -> bool:
        """Delete the sandbox; false if the server may still be about to make it."""
        try:
            if self._record is None and self.name is not None and not self._was_missing:
                status = await self.http.call(self.control.box_status(name), self.headers)
                if status.status != "provisioning":
                    return True  # A stranger's, from before: ours would still be provisioning.
            await self.http.call(self.control.delete_box(name), self.headers)
        except ResourceNotFoundError:
            self._was_missing = True
            return self._answered
        return True


async def delete_quietly(delete: Callable[[], Awaitable[None]], name: str) -> None:
    """Delete a sandbox at the end of its `async with`, also when cancelled, within `CLEAN_UP_SECONDS`.

    What goes wrong is logged, not raised. A sandbox that is gone already is fine.
    """
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLEAN_UP_SECONDS) as scope:
        try:
            await delete()
        except ResourceNotFoundError:
            return
        except SandboxClientError as error:
            _log.warning("the sandbox %r may be left behind: %s", name, error)
    if scope.cancelled_caught:
        _log.warning("the sandbox %r may be left behind: it could not be deleted in time", name)
