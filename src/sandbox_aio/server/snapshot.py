"""A snapshot as the server knows it. Wire protocol, section 1.10.

create -> building -> ready
             |          |
             +-> failed +-> failed (its layers are gone)        any -> deleting -> gone
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from .sandbox import RunConfig

if TYPE_CHECKING:
    from sandbox_aio.runtimes.base import SnapshotInfo

__all__ = ["TRANSITIONS", "Event", "Origin", "Snapshot", "SnapshotStatus", "snapshot_of_base"]


class SnapshotStatus(enum.StrEnum):
    """What a snapshot is, in the words of the wire."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


class Event(enum.Enum):
    """What happens to a snapshot."""

    BUILT = enum.auto()
    BROKE = enum.auto()
    """It could not be made, or what it is made of is gone."""
    DELETE = enum.auto()


TRANSITIONS: Final[Mapping[SnapshotStatus, Mapping[Event, SnapshotStatus]]] = MappingProxyType(
    {
        SnapshotStatus.BUILDING: {
            Event.BUILT: SnapshotStatus.READY,
            Event.BROKE: SnapshotStatus.FAILED,
            Event.DELETE: SnapshotStatus.DELETING,
        },
        SnapshotStatus.READY: {
            Event.BROKE: SnapshotStatus.FAILED,
            Event.DELETE: SnapshotStatus.DELETING,
        },
        SnapshotStatus.FAILED: {Event.DELETE: SnapshotStatus.DELETING},
        SnapshotStatus.DELETING: {Event.DELETE: SnapshotStatus.DELETING},
    }
)
"""Every legal change. What is not here does not happen."""


class Origin(enum.StrEnum):
    """Where a snapshot comes from."""

    BASE = "base"
    """It is one of the runtime's own."""
    IMAGE = "image"
    CAPTURE = "capture"
    IMPORT = "import"


@attrs.frozen(kw_only=True)
class Snapshot:
    """One version of a snapshot's record."""

    id: str
    name: str
    origin: Origin
    status: SnapshotStatus = SnapshotStatus.BUILDING
    status_message: str | None = None
    wanted_tag: str | None = None
    """The tag that is published once it is ready."""
    fs_capacity_bytes: int
    fs_used_bytes: int | None = None
    docker_image: str | None = None
    image_digest: str | None = None
    source_sandbox_id: str | None = None
    registry_id: str | None = None
    description: str | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    wanted: RunConfig = attrs.field(factory=RunConfig)
    """What its creator asked for, over what the image says."""
    run_config: RunConfig = attrs.field(factory=RunConfig)
    """What sandboxes are given; complete once it is ready."""
    base: str | None = None
    """The runtime's own snapshot below its layers."""
    layers: tuple[str, ...] = ()
    """Topmost first."""
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    updated_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))

    def after(self, event: Event, **members: Any) -> Snapshot | None:
        """The record after an event, with these members changed too; None if that event is not legal now."""
        status = TRANSITIONS[self.status].get(event)
        return None if status is None else self.changed(status=status, **members)

    def changed(self, **members: Any) -> Snapshot:
        """Another version, from now."""
        return attrs.evolve(self, updated_at=datetime.now(UTC), **members)

    def to_json(self) -> str:
        """For the database."""
        data = attrs.asdict(self)
        for name in ("created_at", "updated_at"):
            data[name] = data[name].isoformat()
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> Snapshot:
        """What `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        data = json.loads(text)
        for name in ("created_at", "updated_at"):
            data[name] = datetime.fromisoformat(data[name])
        for name in ("wanted", "run_config"):
            data[name] = RunConfig(**data[name])
        data["origin"], data["status"] = Origin(data["origin"]), SnapshotStatus(data["status"])
        data["layers"] = tuple(data["layers"])
        return cls(**data)


def snapshot_of_base(info: SnapshotInfo) -> Snapshot:
    """What a runtime has by itself."""
    return Snapshot(
        id=info.id,
        name=info.name,
        origin=Origin.BASE,
        status=SnapshotStatus.READY,
        fs_capacity_bytes=info.fs_capacity_bytes,
        run_config=RunConfig(user=info.user, work_dir=info.work_dir, env_vars=info.env_vars),
        base=info.id,
    )
