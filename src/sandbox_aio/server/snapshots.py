"""The life of the snapshots: how they are made and removed, and which layers are still needed.

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

import attrs

from sandbox_aio.images.archive import import_archive
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.layers import LayerInfo
from sandbox_aio.images.manifest import ImageConfig
from sandbox_aio.images.pull import pull
from sandbox_aio.images.push import push
from sandbox_aio.images.reference import ImageReference
from sandbox_aio.images.unpack import OVERHEAD, UnpackLimits
from sandbox_aio.runtimes.base import MAX_LAYERS, Runtime, RuntimeFailure
from sandbox_aio.shielding import shielded

from .archive_upload import received
from .builds import BUILD_PROFILE, Builds
from .database import StoreError
from .errors import ApiError
from .sandbox import RunConfig, Sandbox, Status
from .snapshot import Event, Origin, Snapshot, SnapshotStatus
from .snapshot_index import SnapshotIndex
from .snapshot_requests import to_run_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from sandbox_aio.images.access import Credentials, RegistryAccess
    from sandbox_aio.images.download import BlobStore
    from sandbox_aio.images.layers import LayerStore
    from sandbox_aio.images.pulled import PulledImage

    from .database import Database
    from .sandboxes import SandboxRegistry
    from .snapshot_requests import CaptureRequest, CreateSnapshotRequest, ImportRequest, PushRequest

__all__ = ["SnapshotRegistry"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

EARLY: Final = 1.0
"""Seconds that the answer to a create or a capture waits, so that a client need not ask again for what is quick."""
MAX_PULLS: Final = 4
"""Images that are pulled or imported at once; the others wait."""
HINT: Final = "raise fs_capacity_bytes"
IMPORT_CAPACITY: Final = 64 << 30
"""The most bytes that the files of an imported image may hold, if the client says nothing."""
MAX_JOBS: Final = 256
"""Snapshots that are being made or wait for it."""


class SnapshotRegistry:
    """All snapshots of one server; `index` finds them.

    `credentials` finds those of a registry by its id, for the host of an image; it raises ApiError.
    """

    def __init__(
        self,
        runtime: Runtime,
        sandboxes: SandboxRegistry,
        access: RegistryAccess,
        credentials: Callable[[str, str], Credentials | None],
    ) -> None:
        self._sandboxes = sandboxes
        self._access = access
        self._credentials = credentials
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._pins: dict[str, set[str]] = {}
        self._slots = asyncio.Semaphore(MAX_PULLS)
        self._changed = False
        self._collecting: asyncio.Task[None] | None = None
        self._closing = False
        self.index: SnapshotIndex = SnapshotIndex(runtime)
        self.builds: Builds
        self.layers: LayerStore
        self.blobs: BlobStore

    async def open(self, database: Database, layers: LayerStore, blobs: BlobStore) -> None:
        """Learn what there is; begin anew with images that were being pulled, and give up what cannot be begun anew.

        The sandboxes are known by now: what they are made from is kept.
        """
        self.layers, self.blobs = layers, blobs
        await self.index.open(database)
        known = set(layers.ids())
        for snapshot in self.index:
            if snapshot.status is SnapshotStatus.DELETING:
                self.index.forget(snapshot)
            elif snapshot.status is SnapshotStatus.READY and not known.issuperset(snapshot.layers):
                self._fail(snapshot.id, "some of its layers are gone from the server's disk; make it anew")
            elif snapshot.status is SnapshotStatus.BUILDING and snapshot.origin is Origin.IMAGE:
                self._begin(snapshot.id, self._pull(snapshot))
            elif snapshot.status is SnapshotStatus.BUILDING:
                self._fail(snapshot.id, f"the server ended before the {snapshot.origin} was done; do it again")
        if not self._jobs:  # Else when they are done: they find what they had downloaded and unpacked.
            self.collect()
            blobs.sweep()

    async def aclose(self) -> None:
        """End what is under way; a server that keeps its state goes on with it when it starts again."""
        self._closing = True
        for task in self._jobs.values():
            task.cancel()
        await asyncio.gather(*self._jobs.values(), return_exceptions=True)
        if self._collecting is not None:
            await self._collecting
        await self.layers.aclose()

    # Making.

    async def create(self, request: CreateSnapshotRequest) -> Snapshot:
        """Record a snapshot of an image, and begin to pull it. Raises ApiError."""
        await self.index.require_free(request.name)
        if request.registry_id is not None:
            self._credentials(request.registry_id, request.reference.registry)
        self._require_room()
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
        self.index.store(snapshot)
        self._begin(snapshot.id, self._pull(snapshot))
        return snapshot

    async def _pull(self, snapshot: Snapshot) -> None:
        assert snapshot.docker_image is not None
        reference = ImageReference.parse(snapshot.docker_image)
        if self._slots.locked():
            self._tell(snapshot.id, "waiting for other images")
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
        snapshot = self.index.current(id)
        assert snapshot is not None
        config, wanted = pulled.config, snapshot.wanted
        self._ready(
            snapshot,
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

    async def capture(self, sandbox: Sandbox, request: CaptureRequest) -> Snapshot:
        """Record a snapshot of a sandbox, and begin to capture what the sandbox has changed. Raises ApiError."""
        await self.index.require_free(request.name)
        if sandbox.status not in (Status.READY, Status.STOPPED):
            raise ApiError(409, "NotReady", f"sandbox {sandbox.name!r} is {sandbox.status}: it cannot be captured")
        if len(sandbox.layers) >= MAX_LAYERS:
            message = f"sandbox {sandbox.name!r} has {MAX_LAYERS} layers, the limit: push and pull what it is made from"
            raise ApiError(422, "ValidationError", message)
        if request.docker_image is not None and sandbox.profile != BUILD_PROFILE:
            message = "docker_image: only a sandbox that was made to build images has any; see POST /snapshots/builder"
            raise ApiError(501, "NotImplemented", message)
        self._require_room()
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
        if request.docker_image is not None:
            snapshot = attrs.evolve(
                snapshot, docker_image=request.docker_image, base=None, layers=(), run_config=RunConfig()
            )
        self.index.store(snapshot)
        takes = request.docker_image is not None
        self._begin(snapshot.id, self._take_image(snapshot, sandbox) if takes else self._capture(snapshot, sandbox.id))
        return snapshot

    async def _take_image(self, snapshot: Snapshot, sandbox: Sandbox) -> None:
        assert snapshot.docker_image is not None
        self._tell(snapshot.id, "taking the image out of its builder")
        pulled = await self.builds.take_image(
            sandbox,
            snapshot.docker_image,
            self.blobs.directory,
            store=self.layers,
            capacity=snapshot.fs_capacity_bytes,
            pins=self._pins[snapshot.id],
        )
        self.finish(snapshot.id, pulled)

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
                f"{snapshot.fs_capacity_bytes:,}: {HINT}",
                kind="ImageTooLarge",
            )
        self._ready(snapshot, layers=layers, fs_used_bytes=used, status_message=None)

    async def receive(self, request: ImportRequest, pieces: AsyncIterator[bytes]) -> Snapshot:
        """Take the archive of an image, and make a snapshot of it; it is ready, or has failed. Raises ApiError.

        Cancellation: while the archive comes, nothing is left; then the snapshot is made all the same, or given up.
        """
        await self.index.require_free(request.name)
        self._require_room()
        capacity = request.fs_capacity_bytes or IMPORT_CAPACITY
        async with received(pieces, self.blobs.directory, capacity + OVERHEAD) as archive:
            self._require_room()
            snapshot = Snapshot(
                id=str(uuid.uuid4()),
                name=request.name,
                origin=Origin.IMPORT,
                wanted_tag=request.tag or "latest",
                fs_capacity_bytes=capacity,
            )
            self.index.store(snapshot)
            self._begin(snapshot.id, self._import(snapshot, archive))
            await asyncio.wait([self._jobs[snapshot.id]])
        return await self.index.get(snapshot.id)

    async def _import(self, snapshot: Snapshot, archive: Path) -> None:
        self._tell(snapshot.id, "unpacking the archive")
        async with self._slots:
            limits = UnpackLimits(max_bytes=snapshot.fs_capacity_bytes)
            pins = self._pins[snapshot.id]
            self.finish(snapshot.id, await import_archive(archive, store=self.layers, limits=limits, pins=pins))

    async def push(self, reference: str, request: PushRequest) -> str:
        """Push a ready snapshot as an image, and return the digest that the registry has of it. Raises ApiError."""
        snapshot = await self.index.get(reference)
        if snapshot.status is not SnapshotStatus.READY:
            raise ApiError(409, "NotReady", f"snapshot {reference!r} is {snapshot.status}: it cannot be pushed")
        if snapshot.base is not None:
            message = (
                f"snapshot {reference!r} stands on the server's own files, which are no layer: it cannot be pushed"
            )
            raise ApiError(422, "ImageExport", message)
        target, credentials = request.reference, None
        if request.registry_id is not None:
            credentials = self._credentials(request.registry_id, target.registry)
        config = ImageConfig(
            user=snapshot.run_config.user,
            work_dir=snapshot.run_config.work_dir,
            env_vars=dict(snapshot.run_config.env_vars),
        )
        async with self._slots, self.pinned(f"push-{uuid.uuid4()}") as pins:
            pins.update(snapshot.layers)
            try:
                return await push(
                    target,
                    store=self.layers,
                    layers=snapshot.layers,
                    config=config,
                    access=self._access,
                    credentials=credentials,
                    work=self.blobs.directory,
                )
            except ImageError as error:
                raise ApiError(422, error.kind, str(error)) from error
            except OSError as error:
                raise ApiError(507, "InsufficientStorage", f"the server's disk: {error}") from error

    # Naming and removing.

    async def tag(self, reference: str, tag: str, name: str | None) -> Snapshot:
        """Publish a ready snapshot under another tag of its name, or of another name. Raises ApiError."""
        snapshot = await self.index.get_ours(reference)
        if snapshot.status is not SnapshotStatus.READY:
            raise ApiError(409, "NotReady", f"snapshot {reference!r} is {snapshot.status}: it cannot be tagged")
        if name is not None:
            await self.index.require_free(name)
        self.index.publish(snapshot, name or snapshot.name, tag)
        return snapshot

    async def delete(self, reference: str) -> None:
        """By UUID, a snapshot with all its tags; by name and tag, the tag, and the snapshot if that was its last tag
        and no sandbox is made from it. Sandboxes keep what they are made from. Raises ApiError.
        """
        snapshot = await self.index.get_ours(reference)
        if self.index.untag(reference, snapshot):
            used = any(sandbox.snapshot_id == snapshot.id for sandbox in self._sandboxes.list())
            if used or self.index.is_tagged(snapshot):
                return
        await shielded(self._remove(snapshot))

    async def _remove(self, snapshot: Snapshot) -> None:
        deleting = snapshot.after(Event.DELETE)
        assert deleting is not None
        self.index.store(deleting)
        await self.index.committed()
        if (job := self._jobs.get(snapshot.id)) is not None:
            job.cancel()
            await asyncio.wait([job])
        if self.index.current(snapshot.id) is not None:
            self.index.forget(deleting)
            self.collect()

    def collect(self) -> None:
        """Begin to remove the layers that nothing refers to, once the database does not refer to them either."""
        self._changed = True
        if self._collecting is None and not self._closing:
            self._collecting = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        try:
            while self._changed:
                self._changed = False
                if idle := self._idle():
                    await self.index.committed()
                    for id in idle & self._idle():
                        self.layers.discard(id)
        except (StoreError, OSError) as error:
            logger.error("layers that nothing needs are kept until the next start: %s", error)
        finally:
            self._collecting = None

    def _idle(self) -> set[str]:
        idle = set(self.layers.ids()).difference(*self._pins.values())
        for snapshot in self.index:
            idle.difference_update(snapshot.layers)
        for sandbox in self._sandboxes.list() if idle else ():
            idle.difference_update(sandbox.layers)
        return idle

    # Jobs.

    @contextlib.asynccontextmanager
    async def pinned(self, id: str) -> AsyncIterator[set[str]]:
        """Layers that are needed while the block runs."""
        self._pins[id] = pins = set[str]()
        try:
            yield pins
        finally:
            del self._pins[id]
            self.collect()

    async def settled(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot when its job is done, or after `EARLY` seconds: most captures are ready by then."""
        if (job := self._jobs.get(snapshot.id)) is not None:
            await asyncio.wait([job], timeout=EARLY)
        return self.index.current(snapshot.id) or snapshot.changed(status=SnapshotStatus.DELETING)

    def _require_room(self) -> None:
        if len(self._jobs) >= MAX_JOBS:
            message = f"{MAX_JOBS} snapshots are being made, which is the limit; wait for some of them"
            raise ApiError(429, "QuotaExceeded", message, retry_after=2)

    def _begin(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        self._pins[id] = set()
        self._jobs[id] = task = asyncio.create_task(self._run(id, work))
        task.add_done_callback(lambda _: self._over(id, work))

    def _over(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        work.close()  # It was never begun if the job was cancelled at once.
        del self._jobs[id]
        del self._pins[id]
        self.collect()
        if not self._jobs and not self._closing:
            self.blobs.sweep()

    async def _run(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (ImageError, RuntimeFailure) as error:
            hint = f"; {HINT}" if error.kind == "ImageTooLarge" and HINT not in str(error) else ""
            self._fail(id, f"{error}{hint}")
        except ApiError as error:
            self._fail(id, error.message)
        except OSError as error:
            self._fail(id, f"the server's disk: {error}")
        except Exception:
            logger.exception("snapshot %s failed", id)
            self._fail(id, "the server failed; its log says why")

    def _tell(self, id: str, message: str) -> None:
        """Show progress. It is not written down."""
        if (snapshot := self.index.current(id)) is not None and snapshot.status is SnapshotStatus.BUILDING:
            self.index.show(snapshot.changed(status_message=message))

    def _fail(self, id: str, message: str) -> None:
        if (failed := self.index.fail(id, message)) is not None:
            logger.warning("snapshot %s (%s) failed: %s", failed.name, id, message)

    def _ready(self, snapshot: Snapshot, **members: Any) -> None:
        """Publish a snapshot under its tag, unless it is being deleted."""
        current = self.index.current(snapshot.id)
        ready = current.after(Event.BUILT, **members) if current is not None else None
        if ready is not None:
            self.index.publish(ready, ready.name, ready.wanted_tag or "latest")
