"""A sandbox as the server knows it, and the states of its life. Wire protocol, sections 1.6 and 1.9.

create -> provisioning -> ready -> stopped -> provisioning -> ready ...
              |             |
              +-> failed <--+     failed -> provisioning      any -> deleting -> gone
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, Literal

import attrs

from .egress.config import NO_RULES, ProxyConfig

__all__ = ["TRANSITIONS", "Change", "Failure", "RunConfig", "Sandbox", "Settings", "Status"]


class Status(enum.StrEnum):
    """What a sandbox is, in the words of the wire."""

    PROVISIONING = "provisioning"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"
    DELETING = "deleting"


class Change(enum.Enum):
    """What happens to a sandbox."""

    BOOTED = enum.auto()
    BROKE = enum.auto()
    """It could not be started, or its daemon ended by itself."""
    STOP = enum.auto()
    START = enum.auto()
    DELETE = enum.auto()


TRANSITIONS: Final[Mapping[Status, Mapping[Change, Status]]] = MappingProxyType(
    {
        Status.PROVISIONING: {
            Change.BOOTED: Status.READY,
            Change.BROKE: Status.FAILED,
            Change.DELETE: Status.DELETING,
        },
        Status.READY: {
            Change.BROKE: Status.FAILED,
            Change.STOP: Status.STOPPED,
            Change.DELETE: Status.DELETING,
        },
        Status.STOPPED: {
            Change.BROKE: Status.FAILED,
            Change.START: Status.PROVISIONING,
            Change.DELETE: Status.DELETING,
        },
        Status.FAILED: {
            Change.START: Status.PROVISIONING,
            Change.DELETE: Status.DELETING,
        },
        Status.DELETING: {},
    }
)
"""Every legal change. What is not here does not happen."""


@attrs.frozen
class Failure:
    """Why a sandbox is `failed`: a word for programs, such as `SandboxConfig`, and a sentence for people."""

    kind: str
    message: str


@attrs.frozen(kw_only=True)
class RunConfig:
    """Who runs commands, where, and with which environment. None: as the snapshot says."""

    user: str | None = None
    work_dir: str | None = None
    env_vars: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Settings:
    """What the creator of a sandbox asked for. Durations in seconds, sizes in bytes; None: no limit of its own."""

    idle_ttl_seconds: int = 0
    delete_after_stop_seconds: int = 0
    cpu_millicores: int | None = None
    mem_bytes: int | None = None
    fs_capacity_bytes: int | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    run_config: RunConfig = attrs.field(factory=RunConfig)
    proxy_config: ProxyConfig = NO_RULES


@attrs.frozen(kw_only=True)
class Sandbox:
    """One version of a sandbox's record."""

    id: str
    name: str
    snapshot_id: str
    base: str | None
    """The runtime's own snapshot below everything it is made from."""
    layers: tuple[str, ...] = ()
    """What it is made from over that, topmost first; it keeps them although the snapshot is deleted."""
    profile: Literal["default", "build"] = "default"
    image: RunConfig = attrs.field(factory=RunConfig)
    """What its snapshot says, below what its creator asked for."""
    settings: Settings
    secret: str = attrs.field(repr=False)
    fingerprint: bytes | None = None
    """Tells a request that was sent again from another request for the same name."""
    status: Status = Status.PROVISIONING
    failure: Failure | None = None
    made: bool = False
    """Whether the runtime has made its directories."""
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    updated_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    stopped_at: datetime | None = None

    def after(self, change: Change, *, failure: Failure | None = None) -> Sandbox | None:
        """The record after a change; None if that change is not legal now."""
        status = TRANSITIONS[self.status].get(change)
        if status is None:
            return None
        now = datetime.now(UTC)
        return attrs.evolve(
            self,
            status=status,
            failure=failure,
            updated_at=now,
            stopped_at=now if status is Status.STOPPED else None,
        )
