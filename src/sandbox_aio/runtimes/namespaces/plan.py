"""What the zygote is told about a sandbox: first what can be prepared for any, then what makes it this one."""

from __future__ import annotations

from typing import Any

import attrs

from .idmap import IdMap

__all__ = ["BootPlan", "Layer", "Overlay", "Preparation", "plan_from_json", "preparation_from_json"]


@attrs.frozen(kw_only=True)
class Layer:
    """One read-only directory tree of the host."""

    path: str
    mapped: bool
    """Its files belong to the sandbox's root where they belong to the host's; else to nobody, and cannot be changed."""


@attrs.frozen(kw_only=True)
class Overlay:
    """One writable file system of the sandbox."""

    target: str
    """Where it is seen, relative to the sandbox's root: `""` or `"usr"`."""
    layers: tuple[Layer, ...]
    """Directories that are mounted each for itself; topmost first."""
    shelved: tuple[str, ...] = ()
    """Directories below the preparation's shelf, over all `layers`; topmost first."""
    upper: str
    work: str
    """Both relative to the sandbox's directory."""


@attrs.frozen(kw_only=True)
class Preparation:
    """What a process can do before it is known which sandbox it will be."""

    sandboxes: str
    """The directory, absolute, in which the sandboxes' own directories are."""
    ids: IdMap
    overlays: tuple[Overlay, ...]
    """The one for the root directory first."""
    shelf: Layer | None = None
    """A directory that holds all that is `shelved`."""
    cgroup_files: tuple[str, ...] = ()
    """The `cgroup.procs` files to join."""
    profile: str = "default"
    """What it may do: see `privileges.PROFILES`."""

    @property
    def trees(self) -> tuple[Layer, ...]:
        """All that is to be cloned and mapped: the shelf, then the layers of every overlay."""
        layers = tuple(layer for overlay in self.overlays for layer in overlay.layers)
        return layers if self.shelf is None else (self.shelf, *layers)


@attrs.frozen(kw_only=True)
class BootPlan:
    """One sandbox, except for the daemon's own configuration."""

    id: str
    """Also the name of its directory, in which there is a `root` to mount on."""
    hostname: str
    preparation: Preparation
    with_daemon: bool = True
    """False: leave as soon as everything but the daemon is there, which is how the runtime finds out what works."""


def preparation_from_json(data: dict[str, Any]) -> Preparation:
    """Rebuild what `attrs.asdict` made of a preparation. Raises KeyError, TypeError or ValueError for anything else."""
    return Preparation(
        sandboxes=str(data["sandboxes"]),
        ids=IdMap(**{name: int(data["ids"][name]) for name in ("uid", "gid", "count")}),
        overlays=tuple(
            Overlay(
                target=str(overlay["target"]),
                layers=tuple(_layer(layer) for layer in overlay["layers"]),
                shelved=tuple(str(way) for way in overlay["shelved"]),
                upper=str(overlay["upper"]),
                work=str(overlay["work"]),
            )
            for overlay in data["overlays"]
        ),
        shelf=None if data["shelf"] is None else _layer(data["shelf"]),
        cgroup_files=tuple(str(path) for path in data["cgroup_files"]),
        profile=str(data["profile"]),
    )


def _layer(data: dict[str, Any]) -> Layer:
    return Layer(path=str(data["path"]), mapped=bool(data["mapped"]))


def plan_from_json(data: dict[str, Any]) -> BootPlan:
    """Rebuild what `attrs.asdict` made of a plan. Raises KeyError, TypeError or ValueError for anything else."""
    return BootPlan(
        id=str(data["id"]),
        hostname=str(data["hostname"]),
        preparation=preparation_from_json(data["preparation"]),
        with_daemon=bool(data["with_daemon"]),
    )
