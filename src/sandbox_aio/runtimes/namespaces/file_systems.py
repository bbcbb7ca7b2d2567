"""What a sandbox's file systems are stacked from.

At the bottom is a *base*, one of the runtime's own snapshots: `host`, or a directory that the operator named; or there
is none. Over it lie the *layers* of an image or of captures, each a directory `<layers>/<id>/tree` in the form that
overlayfs gives its own upper directories: a 0:0 character device hides what is below it, and the extended attribute
`user.overlay.opaque` hides the content of a directory below. What the sandbox itself changes is on top.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..base import MAX_LAYERS, RuntimeFailure, SnapshotInfo
from . import sandbox_directory, snapshot_host
from .plan import Layer, Overlay
from .snapshot_directory import MOUNT_POINTS, DirectorySnapshot, open_snapshots
from .snapshot_host import HOST_SNAPSHOT_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..base import SandboxSpec
    from .state import StateDirectory

__all__ = ["FileSystems"]

_LAYER_ID: Final = re.compile(r"[0-9]{1,9}")
MAX_KNOWN: Final = 1024
"""Pairs of a target and layers of which it is remembered which of them have it."""


class FileSystems:
    """The bases and the layers of one state directory.

    `owner`: the host id of what belongs to the sandbox's root in everything that is laid or unpacked here. 0 wherever
    the kernel can map ids at mount.
    """

    def __init__(self, state: StateDirectory, snapshots: Iterable[tuple[str, Path]]) -> None:
        self._state = state
        self._wanted = tuple(snapshots)
        self._directories: dict[str, DirectorySnapshot] = {}
        self._system_directories = snapshot_host.system_directories()
        self._skeleton = Path()
        self._host: tuple[Overlay, ...] = ()
        self._unmapped: frozenset[str] = frozenset()
        self._shelved: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}
        self.owner: int = 0

    @property
    def unmapped(self) -> frozenset[str]:
        """The directories whose ids the kernel does not map."""
        return self._unmapped

    def open(self) -> None:
        """Read what is known of the directories that were named. Raises RuntimeFailure."""
        self._directories = open_snapshots(self._wanted)
        self._shelved.clear()

    def build(self) -> None:
        """Make the skeleton of `host` if it is not there. Blocks. Raises OSError."""
        self._skeleton = snapshot_host.build_skeleton(self._state.snapshots, self.owner)
        self._host = sandbox_directory.overlays(self._skeleton, self._system_directories, self._unmapped)

    def give_up_mapping(self, layer: str) -> bool:
        """Remember that the ids of a directory cannot be mapped; tell whether it is one of our own state.

        If it is, `owner` must be set and `build` be called anew.
        """
        self._unmapped |= {layer}
        return layer == str(self._skeleton)

    async def snapshots(self) -> list[SnapshotInfo]:
        """Return the bases."""
        host = await asyncio.to_thread(snapshot_host.describe, self._state.path)
        return [host, *(directory.describe() for directory in self._directories.values())]

    def require(self, spec: SandboxSpec) -> None:
        """Raise RuntimeFailure if the sandbox cannot be stacked from what there is."""
        if spec.base not in (None, HOST_SNAPSHOT_ID, *self._directories):
            raise RuntimeFailure(f"there is no snapshot {spec.base!r}", kind="SnapshotNotFound")
        if spec.base is None and not spec.layers:
            raise RuntimeFailure("there is neither a base nor a layer to boot from", kind="SnapshotNotFound")
        if len(spec.layers) > MAX_LAYERS:
            raise RuntimeFailure(f"{len(spec.layers)} layers are more than {MAX_LAYERS}; flatten the image")
        for layer in spec.layers:
            if not _LAYER_ID.fullmatch(layer) or not (self._state.layers / layer / "tree").is_dir():
                raise RuntimeFailure(f"there is no layer {layer!r}", kind="SnapshotNotFound")

    def shelf(self, layers: tuple[str, ...]) -> Layer | None:
        """The directory that holds the layers, if there are any: it is mounted once for all of them."""
        return Layer(path=str(self._state.layers), mapped=self.owner == 0) if layers else None

    def overlays(self, base: str | None, layers: tuple[str, ...]) -> tuple[Overlay, ...]:
        """Return the file systems of a sandbox. Looks at every layer, the first time that it meets just these."""
        if base is None:
            below: tuple[Overlay, ...] = (Overlay(target="", layers=(), upper="upper", work="work"),)
        else:
            directory = self._directories.get(base)
            below = self._host if directory is None else directory.overlays()
        if not layers:
            return below
        return tuple(self._stack(overlay, layers) for overlay in below)

    def _stack(self, overlay: Overlay, layers: tuple[str, ...]) -> Overlay:
        """Lay, over what an overlay has, what the layers have in the same place."""
        return Overlay(
            target=overlay.target,
            layers=overlay.layers,
            upper=overlay.upper,
            work=overlay.work,
            shelved=self._having(overlay.target, layers),
        )

    def _having(self, target: str, layers: tuple[str, ...]) -> tuple[str, ...]:
        """Where the layers have a directory, in those that have it. Remembered: no layer changes, no id comes again."""
        known = self._shelved.get((target, layers))
        if known is None:
            ways = [f"{layer}/tree/{target}".rstrip("/") for layer in layers]
            known = tuple(way for way in ways if (self._state.layers / way).is_dir())
            if len(self._shelved) >= MAX_KNOWN:
                self._shelved.clear()
            self._shelved[target, layers] = known
        return known

    def mount_points(self, base: str | None) -> Mapping[str, int]:
        """What a sandbox must be given to mount on, by name and mode; only `host` has all of it."""
        return {} if base == HOST_SNAPSHOT_ID else MOUNT_POINTS
