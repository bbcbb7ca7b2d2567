"""A snapshot that is a directory of the host: the root file system of an image, unpacked by whatever means.

Beside `DIRECTORY` there may be `DIRECTORY.json`, the image's own settings: `user`, `work_dir` and `env_vars`, each of
them optional. The image needs no Python, and nothing in it is started: the daemon is a fork of the zygote.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from ..base import RuntimeFailure, SnapshotInfo
from .plan import Layer, Overlay

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MOUNT_POINTS", "DirectorySnapshot", "open_snapshots"]

MOUNT_POINTS: Final[Mapping[str, int]] = {"dev": 0o755, "proc": 0o555, "tmp": 0o1777}
"""What every sandbox has, whether its image does or not, and with which mode."""

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,253}[a-z0-9])?")
_IDS: Final = uuid.UUID("2f0c1c46-3a64-4c55-9a0e-3a0f6a4f0d7b")


@attrs.frozen(kw_only=True)
class DirectorySnapshot:
    """One root file system and its settings."""

    name: str
    path: Path
    user: str | None = None
    work_dir: str = "/"
    env_vars: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def id(self) -> str:
        """The same for the same name and directory, so that a later server knows it again."""
        return str(uuid.uuid5(_IDS, f"{self.name}\0{self.path}"))

    def describe(self) -> SnapshotInfo:
        """What the control plane shows."""
        space = os.statvfs(self.path)
        return SnapshotInfo(
            id=self.id,
            name=self.name,
            tags=("latest",),
            fs_capacity_bytes=space.f_frsize * space.f_blocks,
            work_dir=self.work_dir,
            env_vars=self.env_vars,
            user=self.user,
        )

    def overlays(self) -> tuple[Overlay, ...]:
        """One overlay over the whole of it."""
        return (Overlay(target="", layers=(Layer(path=str(self.path), mapped=True),), upper="upper", work="work"),)


def open_snapshots(directories: Iterable[tuple[str, Path]]) -> dict[str, DirectorySnapshot]:
    """Read the settings of every snapshot, and return them by id.

    Raises RuntimeFailure for a bad or repeated name, a directory that is none, and settings that are none.
    """
    found: dict[str, DirectorySnapshot] = {}
    for name, path in directories:
        if not _NAME.fullmatch(name) or name == "host" or name in {known.name for known in found.values()}:
            raise RuntimeFailure(f"{name!r} cannot be the name of a snapshot, or is one already", kind="SnapshotConfig")
        resolved = path.resolve()
        if not resolved.is_dir():
            raise RuntimeFailure(f"the snapshot {name!r} is to be {path}, which is no directory", kind="SnapshotConfig")
        snapshot = DirectorySnapshot(name=name, path=resolved, **_settings(resolved.with_name(resolved.name + ".json")))
        found[snapshot.id] = snapshot
    return found


def _settings(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"the settings {path} cannot be read: {error}", kind="SnapshotConfig") from error
    if not isinstance(data, dict) or not data.keys() <= {"user", "work_dir", "env_vars"}:
        raise RuntimeFailure(f"{path} is to have user, work_dir and env_vars, and nothing else", kind="SnapshotConfig")
    env_vars = data.get("env_vars", {})
    texts = [data.get("user", ""), data.get("work_dir", "/"), *(env_vars if isinstance(env_vars, dict) else [None])]
    texts += list(env_vars.values()) if isinstance(env_vars, dict) else []
    if not all(isinstance(text, str) for text in texts) or not texts[1].startswith("/"):
        raise RuntimeFailure(
            f"{path} has a value that is no text, or a work_dir that is relative", kind="SnapshotConfig"
        )
    return data
