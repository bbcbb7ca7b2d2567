"""The life of the snapshots: how they are made, named, found and removed, and which layers are still needed.

A layer lies in the store before a record refers to it, and a record is committed before an answer promises it. What no
snapshot, no sandbox and no running job refers to is removed, also at the next start: so a server that is killed at any
instant leaves records whose layers are there, and no layer for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import TYPE_CHECKING, Any, Final

from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.layers import LayerInfo
from sandbox_aio.images.pull import pull
from sandbox_aio.images.reference import ImageReference
from sandbox_aio.images.unpack import UnpackLimits
from sandbox_aio.runtimes.base import Runtime, RuntimeFailure

from .errors import ApiError
from .sandbox import RunConfig, Sandbox, Status
from .snapshot import Origin, Snapshot, SnapshotStatus, snapshot_of_base
from .snapshot_requests import split_reference, to_run_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from sandbox_aio.images.access import Credentials, RegistryAccess
    from sandbox_aio.images.download import BlobStore
    from sandbox_aio.images.layers import LayerStore
    from sandbox_aio.images.pulled import PulledImage

    from .database import Database, Statement
    from .sandboxes import SandboxRegistry
    from .snapshot_requests import CaptureRequest, CreateSnapshotRequest

__all__ = ["SnapshotRegistry"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

EARLY: Final = 1.0
"""Seconds that the answer to a create or a capture waits, so that a client need not ask again for what is quick."""
MAX_PULLS: Final = 4
"""Images that are pulled or imported at once; the others wait."""


class SnapshotRegistry:
    """All snapshots of one server. `reference` is a UUID, `name:tag` or `name` everywhere.

    `credentials` finds those of a registry by its id, for an image; it raises ApiError for an unknown one.
    """

    def __init__(
        self,
        runtime: Runtime,
        sandboxes: SandboxRegistry,
        access: RegistryAccess,
        credentials: Callable[[str, str], Credentials | None],
    ) -> None:
        self._runtime = runtime
        self._sandboxes = sandboxes
        self._access = access
        self._credentials = credentials
        self._snapshots: dict[str, Snapshot] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._pins: dict[str, set[str]] = {}
        self._slots = asyncio.Semaphore(MAX_PULLS)
        self.layers: LayerStore
        self.blobs: BlobStore
        self._database: Database

    async def open(self, database: Database, layers: LayerStore, blobs: BlobStore) -> None:
        """Learn what there is; begin anew with images that were being pulled, and give up what cannot be begun anew."""
        self._database, self.layers, self.blobs = database, layers, blobs
        for (text,) in await database.read("SELECT record FROM snapshots"):
            snapshot = Snapshot.from_json(text)
            self._snapshots[snapshot.id] = snapshot
        for name, tag, id in await database.read("SELECT name, tag, snapshot_id FROM tags"):
            if id in self._snapshots:
                self._tags[name, tag] = id
        known = set(layers.ids())
        for snapshot in list(self._snapshots.values()):
            if snapshot.status is SnapshotStatus.DELETING:
                self._forget(snapshot)
            elif snapshot.status is SnapshotStatus.READY and not known.issuperset(snapshot.layers):
                self._fail(snapshot.id, "some of its layers are gone from the server's disk")
            elif snapshot.status is SnapshotStatus.BUILDING:
                self._resume(snapshot)
        self.collect()
        if not self._jobs:
            blobs.sweep()

    def _resume(self, snapshot: Snapshot) -> None:
        if snapshot.origin is Origin.IMAGE:
            self._begin(snapshot.id, self._pull(snapshot))
        else:
            self._fail(snapshot.id, f"the server ended before the {snapshot.origin} was done; do it again")

    async def aclose(self) -> None:
        """End what is under way; a server that keeps its state begins anew with it."""
        for task in self._jobs.values():
            task.cancel()
        await asyncio.gather(*self._jobs.values(), return_exceptions=True)
        await self.layers.aclose()

    # Finding.

    async def all(self) -> list[Snapshot]:
        """All snapshots, those of the runtime too, in no order."""
        return [*(snapshot_of_base(info) for info in await self._runtime.snapshots()), *self._snapshots.values()]

    async def get(self, reference: str) -> Snapshot:
        """Raises ApiError 404."""
        found = await self.find(reference)
        if found is None:
            raise ApiError(404, "SnapshotNotFound", f"there is no snapshot {reference!r}")
        return found

    async def find(self, reference: str | None) -> Snapshot | None:
        """None means `host`. A bare name means its tag `latest`, else the newest of that name that is ready and has
        no tag.
        """
        bases = [snapshot_of_base(info) for info in await self._runtime.snapshots()]
        if reference is None:
            return next((base for base in bases if base.name == "host"), bases[0] if bases else None)
        name, tag = split_reference(reference)
        for base in bases:
            if base.id == reference.lower() or (base.name == name and tag in (None, "latest")):
                return base
        if (found := self._snapshots.get(reference.lower())) is not None:
            return found
        if (tagged := self._tags.get((name, tag or "latest"))) is not None:
            return self._snapshots[tagged]
        if tag is not None:
            return None
        bare = [one for one in self._snapshots.values() if one.name == name and not self.tags(one)]
        ready = [one for one in bare if one.status is SnapshotStatus.READY]
        return max(ready or bare, key=lambda one: one.created_at, default=None)

    def tags(self, snapshot: Snapshot) -> list[str]:
        """The tags under which a snapshot is found."""
        if snapshot.origin is Origin.BASE:
            return ["latest"]
        return sorted(tag for (_, tag), id in self._tags.items() if id == snapshot.id)

    async def tags_of(self, name: str) -> list[tuple[str, str]]:
        """The tags of a name and the snapshots they are for. Raises ApiError 404 for a name that nothing has."""
        for info in await self._runtime.snapshots():
            if info.name == name:
                return [("latest", info.id)]
        found = sorted((tag, id) for (known, tag), id in self._tags.items() if known == name)
        if not found and not any(snapshot.name == name for snapshot in self._snapshots.values()):
            raise ApiError(404, "SnapshotNotFound", f"there is no snapshot called {name!r}")
        return found

    # Making.

    async def create(self, request: CreateSnapshotRequest) -> Snapshot:
        """Record a snapshot of an image, and begin to pull it. Raises ApiError."""
        await self.require_free(request.name)
        if request.registry_id is not None:
            self._credentials(request.registry_id, request.reference.registry)
        snapshot = Snapshot(
            id=str(uuid.uuid4()),
            name=request.name,
            origin=Origin.IMAGE,
            wanted_tag=request.wanted_tag,
            fs_capacity_bytes=request.fs_capacity_bytes,
            docker_image=request.docker_image,
            registry_id=request.registry_id,
            description=request.description,
            labels=request.labels or {},
            wanted=to_run_config(request.run_config),
        )
        self._store(snapshot)
        self._begin(snapshot.id, self._pull(snapshot))
        return snapshot

    async def _pull(self, snapshot: Snapshot) -> None:
        request = snapshot.docker_image
        assert request is not None
        reference = ImageReference.parse(request)
        async with self._slots:
            credentials = None
            if snapshot.registry_id is not None:
                credentials = self._credentials(snapshot.registry_id, reference.registry)
            pulled = await pull(
                reference,
                store=self.layers,
                blobs=self.blobs,
                access=self._access,
                credentials=credentials,
                limits=UnpackLimits(max_bytes=snapshot.fs_capacity_bytes),
                pins=self._pins[snapshot.id],
                progress=lambda progress: self._tell(snapshot.id, str(progress)),
            )
        self.finish(snapshot.id, pulled)

    def finish(self, id: str, pulled: PulledImage) -> None:
        """An image has arrived."""
        snapshot = self._snapshots[id]
        config, wanted = pulled.config, snapshot.wanted
        self._ready(
            snapshot.changed(
                image_digest=pulled.digest,
                fs_used_bytes=pulled.size_bytes,
                layers=pulled.layers,
                status_message="; ".join(pulled.notes) or None,
                run_config=RunConfig(
                    user=wanted.user or config.user,
                    work_dir=wanted.work_dir or config.work_dir or "/",
                    env_vars={**config.env_vars, **wanted.env_vars},
                ),
            )
        )

    async def capture(self, sandbox: Sandbox, request: CaptureRequest) -> Snapshot:
        """Record a snapshot of a sandbox, and begin to capture what the sandbox has changed. Raises ApiError."""
        await self.require_free(request.name)
        if sandbox.status not in (Status.READY, Status.STOPPED):
            raise ApiError(409, "NotReady", f"sandbox {sandbox.name!r} is {sandbox.status}: it cannot be captured")
        own, below = sandbox.settings.run_config, sandbox.image
        asked = to_run_config(request.run_config)
        labels = {**(sandbox.settings.labels if "labels" in (request.include or ()) else {}), **(request.labels or {})}
        snapshot = Snapshot(
            id=str(uuid.uuid4()),
            name=request.name,
            origin=Origin.CAPTURE,
            wanted_tag=request.tag or "latest",
            fs_capacity_bytes=request.fs_capacity_bytes or sandbox.settings.fs_capacity_bytes or 1 << 40,
            source_sandbox_id=sandbox.id,
            description=request.description,
            labels=labels,
            wanted=asked,
            run_config=RunConfig(
                user=asked.user or own.user or below.user,
                work_dir=asked.work_dir or own.work_dir or below.work_dir,
                env_vars={**below.env_vars, **asked.env_vars},
            ),
            base=sandbox.base,
            layers=sandbox.layers,
        )
        self._store(snapshot)
        self._begin(snapshot.id, self._capture(snapshot, sandbox.id))
        return snapshot

    async def _capture(self, snapshot: Snapshot, sandbox_id: str) -> None:
        self._tell(snapshot.id, "capturing")

        async def make(draft: Path) -> LayerInfo:
            captured = await self._sandboxes.capture(sandbox_id, draft)
            return LayerInfo(size_bytes=captured.size_bytes, entries=captured.entries)

        layer = await self.layers.add(make, self._pins[snapshot.id])
        layers = (layer, *snapshot.layers)
        used = sum(self.layers.describe(id).size_bytes for id in layers)
        if used > snapshot.fs_capacity_bytes:
            raise ImageError(
                f"the files of the sandbox and of its image are {used:,} bytes, and the snapshot may hold "
                f"{snapshot.fs_capacity_bytes:,}: raise fs_capacity_bytes",
                kind="ImageTooLarge",
            )
        current = self._snapshots[snapshot.id]
        self._ready(current.changed(layers=layers, fs_used_bytes=used, status_message=None))

    # Naming and removing.

    async def tag(self, reference: str, tag: str, name: str | None) -> Snapshot:
        """Publish a ready snapshot under another tag of its name, or of another name. Raises ApiError."""
        snapshot = await self.get(reference)
        self._require_ours(snapshot)
        if snapshot.status is not SnapshotStatus.READY:
            raise ApiError(409, "NotReady", f"snapshot {reference!r} is {snapshot.status}: it cannot be tagged")
        if name is not None and name != snapshot.name:
            await self.require_free(name)
        self._database.write(self._publishing(snapshot, name or snapshot.name, tag))
        return snapshot

    async def delete(self, reference: str) -> None:
        """By UUID, a snapshot with all its tags; by name and tag, the tag, and the snapshot if that was its last tag
        and no sandbox is made from it. Sandboxes keep what they are made from. Raises ApiError.
        """
        snapshot = await self.get(reference)
        self._require_ours(snapshot)
        name, tag = split_reference(reference)
        key = (name, tag or "latest")
        if reference.lower() != snapshot.id and self._tags.get(key) == snapshot.id:
            del self._tags[key]
            self._database.write(("DELETE FROM tags WHERE name = ? AND tag = ?", key))
            used = any(sandbox.snapshot_id == snapshot.id for sandbox in self._sandboxes.list())
            if self.tags(snapshot) or used:
                return
        await self._remove(snapshot)

    async def _remove(self, snapshot: Snapshot) -> None:
        self._store(snapshot.changed(status=SnapshotStatus.DELETING))
        if (job := self._jobs.get(snapshot.id)) is not None:
            job.cancel()
            await asyncio.wait([job])
        if snapshot.id in self._snapshots:
            self._forget(self._snapshots[snapshot.id])
            self.collect()

    def collect(self) -> None:
        """Remove the layers that nothing refers to."""
        needed: set[str] = set().union(*self._pins.values())
        for snapshot in self._snapshots.values():
            needed.update(snapshot.layers)
        for sandbox in self._sandboxes.list():
            needed.update(sandbox.layers)
        for id in self.layers.ids():
            if id not in needed:
                self.layers.discard(id)

    async def require_free(self, name: str) -> None:
        """Raise ApiError 409 for the name of one of the runtime's own snapshots."""
        if any(info.name == name for info in await self._runtime.snapshots()):
            raise ApiError(409, "ResourceNameConflict", f"the snapshot {name!r} is the server's own; take another name")

    @staticmethod
    def _require_ours(snapshot: Snapshot) -> None:
        if snapshot.origin is Origin.BASE:
            raise ApiError(
                403, "Forbidden", f"the snapshot {snapshot.name!r} is the server's own and cannot be changed"
            )

    # Jobs and records.

    @contextlib.asynccontextmanager
    async def pinned(self, id: str) -> AsyncIterator[set[str]]:
        """Layers that are needed while the block runs."""
        self._pins[id] = pins = set[str]()
        try:
            yield pins
        finally:
            del self._pins[id]
            self.collect()

    async def settled(self, id: str) -> Snapshot:
        """The snapshot when its job is done, or after `EARLY` seconds: most captures are ready by then."""
        if (job := self._jobs.get(id)) is not None:
            await asyncio.wait([job], timeout=EARLY)
        await self._database.committed()
        return await self.get(id)

    def _begin(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        self._pins[id] = set()
        self._jobs[id] = task = asyncio.create_task(self._run(id, work))
        task.add_done_callback(lambda _: self._jobs.pop(id, None))

    async def _run(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (ImageError, RuntimeFailure, ApiError) as error:
            self._fail(id, str(error) if not isinstance(error, ApiError) else error.message)
        except OSError as error:
            self._fail(id, f"the server's disk: {error}")
        except Exception:
            logger.exception("snapshot %s failed", id)
            self._fail(id, "the server failed; its log says why")
        finally:
            del self._pins[id]
            self.collect()
            if len(self._jobs) <= 1:
                self.blobs.sweep()

    def _tell(self, id: str, message: str) -> None:
        """Show progress. It is not written down."""
        if (snapshot := self._snapshots.get(id)) is not None and snapshot.status is SnapshotStatus.BUILDING:
            self._snapshots[id] = snapshot.changed(status_message=message)

    def _fail(self, id: str, message: str) -> None:
        if (snapshot := self._snapshots.get(id)) is not None and snapshot.status is not SnapshotStatus.DELETING:
            logger.warning("snapshot %s (%s) failed: %s", snapshot.name, id, message)
            self._store(snapshot.changed(status=SnapshotStatus.FAILED, status_message=message, layers=()))

    def _ready(self, snapshot: Snapshot) -> None:
        if self._snapshots[snapshot.id].status is SnapshotStatus.BUILDING:
            tag = snapshot.wanted_tag or "latest"
            self._store(snapshot.changed(status=SnapshotStatus.READY), self._publishing(snapshot, snapshot.name, tag))

    def _publishing(self, snapshot: Snapshot, name: str, tag: str) -> Statement:
        """Move a tag; return what writes that down."""
        self._tags[name, tag] = snapshot.id
        return "INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (name, tag, snapshot.id)

    def _store(self, snapshot: Snapshot, *more: Statement) -> None:
        self._snapshots[snapshot.id] = snapshot
        row = (snapshot.id, snapshot.to_json())
        self._database.write(("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", row), *more)

    def _forget(self, snapshot: Snapshot) -> None:
        self._snapshots.pop(snapshot.id, None)
        for key in [key for key, id in self._tags.items() if id == snapshot.id]:
            del self._tags[key]
        self._database.write(
            ("DELETE FROM tags WHERE snapshot_id = ?", (snapshot.id,)),
            ("DELETE FROM snapshots WHERE id = ?", (snapshot.id,)),
        )

    async def committed(self) -> None:
        """Wait until every change is in the database. Raises StoreError."""
        await self._database.committed()
