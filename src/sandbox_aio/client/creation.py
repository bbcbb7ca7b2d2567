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
    SandboxRetryableConnectionError,
    ValidationError,
)
from ..models import SandboxRecord
from ..protocol.http_requests import BoxOptions, ControlPlane
from .ids import new_sandbox_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["CLEAN_UP_SECONDS", "Creation", "delete_quietly"]

CLEAN_UP_SECONDS = 5.0
"""How long a cancelled caller may be held up, all in all, by making sure that no sandbox is left."""
_ANSWER_SECONDS = 3.0
"""How much of it the answer to the creation may take."""
_LOOK_AGAIN_SECONDS = 0.1

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
    _answered: anyio.Event = attrs.field(init=False, factory=anyio.Event)
    _record: SandboxRecord | None = attrs.field(init=False, default=None)
    _error: Exception | None = attrs.field(init=False, default=None)

    async def run(self) -> SandboxRecord:
        """Make the sandbox.

        Cancelled, it deletes what was made, within `CLEAN_UP_SECONDS`. If it fails, a sandbox whose name only we know
        is deleted likewise; one that the caller named is left to the caller.
        """
        name = self.name or new_sandbox_name()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, name)
                await self._wait_for_answer()
        except anyio.get_cancelled_exc_class():
            await self._undo(name, self._patience.deadline - _ANSWER_SECONDS + CLEAN_UP_SECONDS)
            raise
        if self._error is not None:
            if self.name is None:
                await self._undo(name, anyio.current_time() + CLEAN_UP_SECONDS)
            raise self._error
        assert self._record is not None
        return self._record

    async def _wait_for_answer(self) -> None:
        try:
            await self._answered.wait()
        except anyio.get_cancelled_exc_class():
            self._patience.deadline = anyio.current_time() + _ANSWER_SECONDS
            raise

    async def _send(self, name: str) -> None:
        with self._patience:
            call = self.control.create_box(
                self.options,
                name=name,
                name_is_unique=self.name is None,
                wait_for_ready=self.wait_for_ready,
                timeout=self.timeout,
            )
            try:
                self._record = await self.http.call(call, self.headers)
            except Exception as error:
                self._error = error
        self._answered.set()

    async def _undo(self, name: str, deadline: float) -> None:
        if isinstance(self._error, _NOTHING_WAS_MADE):
            return
        with anyio.CancelScope(shield=True, deadline=deadline) as scope:
            try:
                while not await self._deleted(name):  # noqa: ASYNC110 - what it waits for is far away
                    await anyio.sleep(_LOOK_AGAIN_SECONDS)
            except SandboxClientError as error:
                _log.warning("the sandbox %r may be left behind: %s", name, error)
        if scope.cancelled_caught and self._record is not None:
            _log.warning("the sandbox %r may be left behind: its deletion was not answered in time", name)

    async def _deleted(self, name: str) -> bool:
        """Delete the sandbox; false if the server may still be about to make it."""
        try:
            if self._record is None and self.name is not None:
                status = await self.http.call(self.control.box_status(name), self.headers)
                if status.status != "provisioning":
                    return True  # It was there before: our request would have made it provisioning.
            await self.http.call(self.control.delete_box(name), self.headers)
        except ResourceNotFoundError:
            return self._answered.is_set()
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
        _log.warning("the sandbox %r may be left behind: its deletion was not answered in time", name)
