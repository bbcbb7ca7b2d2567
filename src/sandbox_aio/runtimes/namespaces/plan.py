"""What the zygote is told about one sandbox, and what its child builds from that."""

from __future__ import annotations

from typing import Any

import attrs

from .idmap import IdMap

__all__ = ["BootPlan", "Layer", "Overlay"]


@attrs.frozen(kw_only=True)
class Layer:
    """One read-only directory tree of the host."""

    path: str
    mapped: bool
    """Its files belong to the sandbox's root where they belong to the host's; else they belong to nobody, and cannot be changed."""


@attrs.frozen(kw_only=True)
class Overlay:
    """One writable file system of the sandbox."""

    target: str
    """Where it is seen, relative to the sandbox's root: `""` or `"usr"`."""
    layers: tuple[Layer, ...]
    """Topmost first."""
    upper: str
    work: str
    """Both relative to the sandbox's directory."""


@attrs.frozen(kw_only=True)
class BootPlan:
    """Everything that a child needs to become a daemon, except the daemon's own configuration."""

    id: str
    directory: str
    """The sandbox's directory on the host; absolute. It has a `root` to mount on."""
    ids: IdMap
    overlays: tuple[Overlay, ...]
    """The one for the root directory first."""
    hostname: str
    cgroup_files: tuple[str, ...] = ()
    """The `cgroup.procs` files to join."""
    with_daemon: bool = True
    """False: leave as soon as everything but the daemon has been set up, which is how the runtime finds out what works."""

    def to_message(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return attrs.asdict(self)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> BootPlan:
        """Rebuild what `to_message` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            id=str(message["id"]),
            directory=str(message["directory"]),
            ids=IdMap(**{name: int(message["ids"][name]) for name in ("uid", "gid", "count")}),
            overlays=tuple(
                Overlay(
                    target=str(overlay["target"]),
                    layers=tuple(
                        Layer(path=str(layer["path"]), mapped=bool(layer["mapped"])) for layer in overlay["layers"]
                    ),
                    upper=str(overlay["upper"]),
                    work=str(overlay["work"]),
                )
                for overlay in message["overlays"]
            ),
            hostname=str(message["hostname"]),
            cgroup_files=tuple(str(path) for path in message["cgroup_files"]),
            with_daemon=bool(message["with_daemon"]),
        )
