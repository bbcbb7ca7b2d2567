"""The life of the sandboxes: the only code that changes a record or asks the runtime for anything.

What is done to one sandbox is done one thing at a time, under its lock, in tasks of the registry's own: a caller that
is cancelled stops waiting, and changes nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from sandbox_aio.runtimes.base import Captured, DaemonAddress, Runtime, RuntimeFailure, SandboxSpec

from .errors import ApiError
from .sandbox import Change, Failure, Sandbox, Settings, Status
from .snapshot import Snapshot
from .store import SandboxStore

if TYPE_CHECKING:
    from pathlib import Path

    from .database import Database
    from .egress import EgressGateway

__all__ = ["Detach", "NewSandbox", "SandboxRegistry"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

RESEND_WINDOW: Final = 60.0
"""Seconds in which the same request for the same name is taken for one sent again (wire protocol, section 9.2, B6)."""

Detach = Callable[[str, Literal["stopped", "deleted"]], Awaitable[None]]
"""Called before a running sandbox goes, so that those attached to it hear why."""


@attrs.frozen(kw_only=True)
class NewSandbox:
    """What to create. `fingerprint` is the same for a request that is sent again."""

    name: str | None
    snapshot: Snapshot
    settings: Settings
    profile: Literal["default", "build"] = "default"
    fingerprint: bytes | None = None


class SandboxRegistry:
    """All sandboxes of one server.

    `reference` is a name or an id everywhere; an unknown one raises ApiError 404.
    """

    def __init__(self, runtime: Runtime, *, detach: Detach, egress: EgressGateway | None = None) -> None:
        self._runtime = runtime
        self._detach = detach
        self._egress = egress
        self._store = SandboxStore()
        self._addresses: dict[str, DaemonAddress] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._deleting: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.on_gone: Callable[[], None] = lambda: None
        """Called when a sandbox is gone, with all that it needed."""

    async def open(self, database: Database) -> None:
        """Learn what an earlier server knew, and bring it and what the runtime has to agree.

        What runs goes on, and is reached again; what should run and does not is stopped; a start or a deletion that was
        under way begins anew; what only the runtime knows is destroyed. Raises StoreError.
        """
        await self._store.open(database)
        found = {status.id: status.state for status in await self._runtime.list()}
        for sandbox in self._store:
            await self._reconcile(sandbox, found.pop(sandbox.id, None))
        for id in found:
            await self._runtime.destroy(id)

    async def _reconcile(self, sandbox: Sandbox, state: str | None) -> None:
        id, status = sandbox.id, sandbox.status
        if status is Status.DELETING or sandbox.profile != "default":  # Nobody waits for what it built.
            self._begin_delete(sandbox)
        elif state is None and sandbox.made:
            self._apply(id, Change.BROKE, Failure("SandboxLost", "its files are gone from the server's disk"))
        elif status is Status.PROVISIONING:
            self._starting[id] = self._spawn(self._start(sandbox))
        elif status is Status.READY and state == "running" and (address := await self._runtime.address(id)) is not None:
            self._addresses[id] = address
            if self._egress is not None:
                try:
                    await self._egress.open_way_out(self._runtime, id, address, sandbox.settings.proxy_config)
                except RuntimeFailure as failure:
                    logger.warning("sandbox %s has no way out any more: %s", sandbox.name, failure)
        elif status is Status.READY:
            self._apply(id, Change.STOP)
        elif state == "running":
            await self._runtime.stop(id)

    async def committed(self) -> None:
        """Wait until every change is in the database. Raises StoreError."""
        await self._store.committed()

    # Reading.

    def get(self, reference: str) -> Sandbox:
        sandbox = self._store.find(reference)
        if sandbox is None:
            raise ApiError(404, "SandboxNotFound", f"there is no sandbox {reference!r}")
        return sandbox

    def knows(self, reference: str) -> bool:
        """Whether there is such a sandbox."""
        return self._store.find(reference) is not None

    def list(self) -> list[Sandbox]:
        """All sandboxes, in no order."""
        return list(self._store)

    async def daemon(self, reference: str) -> tuple[Sandbox, DaemonAddress]:
        """Where a sandbox's daemon listens. Starts the sandbox if it is stopped, and waits until it is ready.

        Raises ApiError 400 `NotReady` when it has failed.
        """
        sandbox = self.get(reference)
        if sandbox.status is Status.READY and (address := self._addresses.get(sandbox.id)) is not None:
            return sandbox, address
        if sandbox.status is Status.STOPPED:
            self._begin_start(sandbox)
        sandbox = await self.wait_started(sandbox.id)
        address = self._addresses.get(sandbox.id)
        if sandbox.status is not Status.READY or address is None:
            raise _not_ready(sandbox)
        return sandbox, address

    async def wait_started(self, reference: str) -> Sandbox:
        """The sandbox once no start of it is under way, whatever came of it."""
        id = self.get(reference).id
        if (task := self._starting.get(id)) is not None:
            await asyncio.shield(task)
        return self.get(id)

    # Changing.

    def create(self, new: NewSandbox) -> Sandbox:
        """Record a sandbox and begin to start it.

        The same request for the same name, sent again while that is going on, gets the same sandbox; otherwise a taken
        name raises ApiError 409.
        """
        if new.name is not None and (existing := self._store.find(new.name)) is not None and _same(existing, new):
            return existing
        sandbox = Sandbox(
            id=str(uuid.uuid4()),
            name=new.name or self._invent_name(),
            snapshot_id=new.snapshot.id,
            base=new.snapshot.base,
            layers=new.snapshot.layers,
            image=new.snapshot.run_config,
            profile=new.profile,
            settings=new.settings,
            secret=secrets.token_urlsafe(32),
            fingerprint=new.fingerprint,
        )
        self._store.insert(sandbox)
        self._starting[sandbox.id] = self._spawn(self._start(sandbox))
        return sandbox

    def start(self, reference: str) -> Sandbox:
        """Begin to start a sandbox that is stopped or failed; nothing happens to one that runs or starts already."""
        sandbox = self.get(reference)
        if sandbox.status in (Status.STOPPED, Status.FAILED):
            return self._begin_start(sandbox)
        if sandbox.status is Status.DELETING:
            raise ApiError(400, "InvalidRequest", f"sandbox {sandbox.name!r} is being deleted")
        return sandbox

    async def stop(self, reference: str) -> None:
        """Kill a sandbox's processes and keep its files; nothing happens to one that is stopped already.

        Raises ApiError 400 for one that has failed or is being deleted.
        """
        sandbox = await self.wait_started(reference)
        if sandbox.status in (Status.FAILED, Status.DELETING):
            raise ApiError(400, "InvalidRequest", f"sandbox {sandbox.name!r} is {sandbox.status}: it cannot be stopped")
        if sandbox.status is Status.READY:
            await asyncio.shield(self._spawn(self._stop(sandbox.id)))

    async def update(self, reference: str, change: Callable[[Settings], Settings]) -> Sandbox:
        """Change what a sandbox was asked to be; a running one is under its new rules when this returns.

        Raises ApiError 400 `InvalidRequest` while it is being started or deleted.
        """
        id = self.get(reference).id
        async with self._lock(id) if id not in self._starting else contextlib.nullcontext():
            sandbox = self.get(id)
            if sandbox.status in (Status.PROVISIONING, Status.DELETING):
                message = f"sandbox {sandbox.name!r} is {sandbox.status}: change it when it is not"
                raise ApiError(400, "InvalidRequest", message)
            settings = change(sandbox.settings)
            if settings == sandbox.settings:
                return sandbox
            changed = attrs.evolve(sandbox, settings=settings, updated_at=datetime.now(UTC))
            self._store.replace(changed)
            address = self._addresses.get(id)
            if self._egress is not None and address is not None:
                try:
                    await self._egress.follow(id, address, settings.proxy_config)
                except RuntimeFailure as failure:
                    raise ApiError(500, failure.kind, str(failure)) from failure
            return changed

    async def capture(self, id: str, layer: Path) -> Captured:
        """Copy what a sandbox has changed into a layer that is being made: see `Runtime.capture`.

        Raises ApiError 409 unless it runs or is stopped, RuntimeFailure.
        """
        async with self._lock(self.get(id).id):
            sandbox = self.get(id)
            if sandbox.status not in (Status.READY, Status.STOPPED):
                message = f"sandbox {sandbox.name!r} is {sandbox.status}: it cannot be captured"
                raise ApiError(409, "NotReady", message)
            return await self._runtime.capture(id, layer)

    async def delete(self, reference: str) -> None:
        """Destroy a sandbox. Returns when every trace is gone; deleting it meanwhile again waits for the same."""
        sandbox = self.get(reference)
        await asyncio.shield(self._deleting.get(sandbox.id) or self._begin_delete(sandbox))

    def abandon(self, reference: str) -> None:
        """Delete a sandbox that nobody waits for."""
        if (sandbox := self._store.find(reference)) is not None and sandbox.id not in self._deleting:
            self._begin_delete(sandbox)

    def daemon_ended(self, id: str, reason: str) -> None:
        """The runtime's exit callback: a running sandbox has failed."""
        sandbox = self._store.find(id)
        if sandbox is not None and sandbox.status is Status.READY and not self._closed:
            logger.warning("sandbox %s failed: %s", sandbox.name, reason)
            self._addresses.pop(id, None)
            self._apply(id, Change.BROKE, Failure("DaemonEnded", reason))
            self._spawn(self._close_way_out(id))

    async def aclose(self) -> None:
        """Wait for what is under way. No call may follow."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    # The work itself.

    def _begin_start(self, sandbox: Sandbox) -> Sandbox:
        sandbox = self._apply(sandbox.id, Change.START)
        self._starting[sandbox.id] = self._spawn(self._start(sandbox))
        return sandbox

    def _begin_delete(self, sandbox: Sandbox) -> asyncio.Task[None]:
        self._apply(sandbox.id, Change.DELETE)
        self._deleting[sandbox.id] = task = self._spawn(self._delete(sandbox.id))
        return task

    async def _start(self, sandbox: Sandbox) -> None:
        id = sandbox.id
        try:
            async with self._lock(id):
                if not sandbox.made:
                    await self._runtime.create(self._spec(sandbox))
                    self._store.replace(attrs.evolve(self._current(id), made=True))
                self._addresses[id] = address = await self._runtime.start(id)
                if self._egress is not None:
                    rules = self._current(id).settings.proxy_config
                    await self._egress.open_way_out(self._runtime, id, address, rules)
                self._apply(id, Change.BOOTED)
        except RuntimeFailure as failure:
            logger.warning("sandbox %s did not start: %s", sandbox.name, failure)
            self._apply(id, Change.BROKE, Failure(failure.kind, str(failure)))
        except Exception:
            error_id = secrets.token_hex(8)
            logger.exception("sandbox %s did not start (error_id=%s)", sandbox.name, error_id)
            self._apply(id, Change.BROKE, Failure("InternalError", f"the server failed (error_id={error_id})"))
        finally:
            del self._starting[id]

    async def _stop(self, id: str) -> None:
        async with self._lock(id):
            sandbox = self._store.find(id)
            if sandbox is None or sandbox.status is not Status.READY:
                return
            self._apply(id, Change.STOP)
            self._addresses.pop(id, None)
            await self._detach(id, "stopped")
            await self._close_way_out(id)
            try:
                await self._runtime.stop(id)
            except RuntimeFailure as failure:
                self._apply(id, Change.BROKE, Failure(failure.kind, str(failure)))
                raise ApiError(500, failure.kind, str(failure)) from failure

    async def _delete(self, id: str) -> None:
        try:
            async with self._lock(id):
                self._addresses.pop(id, None)
                await self._detach(id, "deleted")
                await self._close_way_out(id)
                await self._runtime.destroy(id)
                self._store.remove(id)
            self.on_gone()
            del self._locks[id]
        except RuntimeFailure as failure:
            raise ApiError(500, failure.kind, str(failure)) from failure
        finally:
            del self._deleting[id]

    async def _close_way_out(self, id: str) -> None:
        if self._egress is not None:
            await self._egress.detach(id)

    def _spec(self, sandbox: Sandbox) -> SandboxSpec:
        own, image = sandbox.settings.run_config, sandbox.image
        rules = sandbox.settings.proxy_config
        ours = self._egress.variables(rules) if self._egress is not None else {}
        return SandboxSpec(
            id=sandbox.id,
            base=sandbox.base,
            layers=sandbox.layers,
            profile=sandbox.profile,
            hostname=sandbox.name,
            secret=sandbox.secret,
            work_dir=own.work_dir or image.work_dir or "/",
            user=own.user or image.user,
            env_vars={**ours, **image.env_vars, **rules.env_vars, **own.env_vars},
            cpu_millicores=sandbox.settings.cpu_millicores,
            mem_bytes=sandbox.settings.mem_bytes,
        )

    def _apply(self, id: str, change: Change, failure: Failure | None = None) -> Sandbox:
        """Make a change if it is legal. One that is not comes too late (a sandbox booted that is being deleted)."""
        sandbox = self._current(id)
        changed = sandbox.after(change, failure=failure)
        if changed is not None:
            self._store.replace(changed)
        return changed or sandbox

    def _current(self, id: str) -> Sandbox:
        sandbox = self._store.find(id)
        assert sandbox is not None
        return sandbox

    def _lock(self, id: str) -> asyncio.Lock:
        return self._locks.setdefault(id, asyncio.Lock())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _invent_name(self) -> str:
        while self._store.find(name := f"sandbox-{secrets.token_hex(4)}") is not None:
            pass
        return name


def _same(existing: Sandbox, new: NewSandbox) -> bool:
    return (
        existing.status is Status.PROVISIONING
        and new.fingerprint is not None
        and existing.fingerprint == new.fingerprint
        and (datetime.now(UTC) - existing.created_at).total_seconds() < RESEND_WINDOW
    )


def _not_ready(sandbox: Sandbox) -> ApiError:
    reason = f": {sandbox.failure.message}" if sandbox.failure else ""
    return ApiError(400, "NotReady", f"sandbox {sandbox.name!r} is {sandbox.status}{reason}")
