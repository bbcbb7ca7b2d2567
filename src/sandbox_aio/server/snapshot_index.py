"""The records of all snapshots, and the names and tags under which they are found. Wire protocol, section 1.10.

Memory is changed first and the database behind it, in the same order; `committed` waits for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ApiError
from .snapshot import Event, Origin, Snapshot, SnapshotStatus, snapshot_of_base
from .snapshot_requests import split_reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox_aio.runtimes.base import Runtime

    from .database import Database, Statement

__all__ = ["SnapshotIndex"]


class SnapshotIndex:
    """All snapshots of one server: those of the runtime's own, which cannot be changed, and ours.

    `reference` is a UUID, `name:tag` or `name` everywhere.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._snapshots: dict[str, Snapshot] = {}
        self._tags: dict[tuple[str, str], str] = {}
        self._database: Database

    async def open(self, database: Database) -> None:
        """Learn what there is."""
        self._database = database
        for (text,) in await database.read("SELECT record FROM snapshots"):
            snapshot = Snapshot.from_json(text)
            self._snapshots[snapshot.id] = snapshot
        for name, tag, id in await database.read("SELECT name, tag, snapshot_id FROM tags"):
            if id in self._snapshots:
                self._tags[name, tag] = id

    def __iter__(self) -> Iterator[Snapshot]:
        """Ours, in no order."""
        return iter(list(self._snapshots.values()))

    def __len__(self) -> int:
        return len(self._snapshots)

    # Finding.

    async def all(self) -> list[Snapshot]:
        """All snapshots, those of the runtime too, in no order."""
        return [*await self._bases(), *self._snapshots.values()]

    def current(self, id: str) -> Snapshot | None:
        """The record of one of ours, by its id."""
        return self._snapshots.get(id)

    async def get(self, reference: str) -> Snapshot:
        """Raises ApiError 404."""
        found = await self.find(reference)
        if found is None:
            raise ApiError(404, "SnapshotNotFound", f"there is no snapshot {reference!r}")
        return found

    async def get_ours(self, reference: str) -> Snapshot:
        """One that may be changed. Raises ApiError 404, and 403 for one of the runtime's own."""
        snapshot = await self.get(reference)
        if snapshot.origin is Origin.BASE:
            message = f"the snapshot {snapshot.name!r} is the server's own and cannot be changed"
            raise ApiError(403, "Forbidden", message)
        return snapshot

    async def find(self, reference: str | None) -> Snapshot | None:
        """None means `host`. A bare name means its tag `latest`, else the newest of that name that has no tag, one that
        is ready before one that is not.
        """
        bases = await self._bases()
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
        bare = [one for one in self._snapshots.values() if one.name == name and not self.is_tagged(one)]
        ready = [one for one in bare if one.status is SnapshotStatus.READY]
        return max(ready or bare, key=lambda one: one.created_at, default=None)

    def tags(self, snapshot: Snapshot) -> list[str]:
        """The tags of its own name under which a snapshot is found."""
        if snapshot.origin is Origin.BASE:
            return ["latest"]
        return sorted(tag for (name, tag), id in self._tags.items() if id == snapshot.id and name == snapshot.name)

    def is_tagged(self, snapshot: Snapshot) -> bool:
        """Whether any tag, of whichever name, is for this snapshot."""
        return snapshot.id in self._tags.values()

    async def tags_of(self, name: str) -> list[tuple[str, str]]:
        """The tags of a name and the snapshots they are for. Raises ApiError 404 for a name that nothing has."""
        for base in await self._bases():
            if base.name == name:
                return [("latest", base.id)]
        found = sorted((tag, id) for (known, tag), id in self._tags.items() if known == name)
        if not found and not any(snapshot.name == name for snapshot in self._snapshots.values()):
            raise ApiError(404, "SnapshotNotFound", f"there is no snapshot called {name!r}")
        return found

    async def require_free(self, name: str) -> None:
        """Raise ApiError 409 for the name of one of the runtime's own snapshots."""
        if any(base.name == name for base in await self._bases()):
            raise ApiError(409, "ResourceNameConflict", f"the snapshot {name!r} is the server's own; take another name")

    async def _bases(self) -> list[Snapshot]:
        return [snapshot_of_base(info) for info in await self._runtime.snapshots()]

    # Changing.

    def store(self, snapshot: Snapshot) -> None:
        """Record a snapshot, or a new version of one."""
        self._snapshots[snapshot.id] = snapshot
        self._database.write(_row(snapshot))

    def show(self, snapshot: Snapshot) -> None:
        """Show a new version that is not worth writing down."""
        self._snapshots[snapshot.id] = snapshot

    def publish(self, snapshot: Snapshot, name: str, tag: str) -> None:
        """Record a snapshot that is ready, and move a tag to it, both or neither."""
        self._snapshots[snapshot.id] = snapshot
        self._tags[name, tag] = snapshot.id
        move = ("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (name, tag, snapshot.id))
        self._database.write(_row(snapshot), move)

    def fail(self, id: str, message: str) -> Snapshot | None:
        """Record that a snapshot is worth nothing, if it is not being deleted."""
        snapshot = self._snapshots.get(id)
        failed = snapshot.after(Event.BROKE, status_message=message, layers=()) if snapshot is not None else None
        if failed is not None:
            self.store(failed)
        return failed

    def untag(self, reference: str, snapshot: Snapshot) -> bool:
        """Take away the tag by which a snapshot was found. False: it was not found by one."""
        name, tag = split_reference(reference)
        key = (name, tag or "latest")
        if reference.lower() == snapshot.id or self._tags.get(key) != snapshot.id:
            return False
        del self._tags[key]
        self._database.write(("DELETE FROM tags WHERE name = ? AND tag = ?", key))
        return True

    def forget(self, snapshot: Snapshot) -> None:
        """Remove a snapshot and all its tags."""
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


def _row(snapshot: Snapshot) -> Statement:
    return "INSERT OR REPLACE INTO snapshots VALUES (?, ?)", (snapshot.id, snapshot.to_json())
