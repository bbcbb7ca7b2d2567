"""Limits of memory and processor time, by control groups.

Moving a process into a control group takes about 11 ms on an idle machine, so only a sandbox that asks for a limit
gets one. Each limited sandbox has a group of its own below the group that this process is in, so that a limit around
the whole server still holds. Version 2 is used where it has the controller, else version 1.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import attrs

from ..base import RuntimeFailure

__all__ = ["Cgroups", "remove_groups"]

CPU_PERIOD_US: Final = 100_000
MIN_QUOTA_US: Final = 1_000
REMOVAL_TIMEOUT_S: Final = 2.0

Version = Literal["cgroup1", "cgroup2"]


@attrs.frozen(kw_only=True)
class Cgroups:
    """Where groups can be made. Find it out with `detect`."""

    parents: Mapping[str, Path]
    """For each controller that can be used, the group below which ours are made."""
    versions: Mapping[str, Version]

    @classmethod
    def detect(cls, tag: str, root: Path = Path("/")) -> Cgroups:
        """Find the groups of this process and try to make a group named `tag` in each. Blocks for some milliseconds.

        `tag` then holds the groups of one runtime. `root` is where /proc and the mount points are looked for.
        """
        parents: dict[str, Path] = {}
        versions: dict[str, Version] = {}
        own = _own_groups(root)
        for controller in ("memory", "cpu"):
            for version, group in _candidates(own, controller):
                with contextlib.suppress(OSError):
                    parents[controller] = _make_parent(group, tag, controller, version)
                    versions[controller] = version
                    break
        return cls(parents=parents, versions=versions)

    def version(self, controller: str) -> Version | None:
        """Return by which version a controller is enforced; None if it is not."""
        return self.versions.get(controller)

    def require(self, *, cpu_millicores: int | None, mem_bytes: int | None) -> None:
        """Raise RuntimeFailure, naming the field, if a limit that is given cannot be enforced."""
        for field, value, controller in (("cpu_millicores", cpu_millicores, "cpu"), ("mem_bytes", mem_bytes, "memory")):
            if value is not None and controller not in self.parents:
                raise RuntimeFailure(
                    f"{field} cannot be enforced: this user may not use the {controller} control group; "
                    f"leave {field} out, or run the server as root or as a systemd unit with Delegate=yes",
                    kind="UnsupportedLimit",
                )

    def make(self, name: str, *, cpu_millicores: int | None, mem_bytes: int | None) -> tuple[str, ...]:
        """Make the groups of one sandbox and return the files through which its first process joins them.

        Raises RuntimeFailure, and leaves nothing, if the kernel refuses a limit.
        """
        self.require(cpu_millicores=cpu_millicores, mem_bytes=mem_bytes)
        settings = self._settings(cpu_millicores, mem_bytes)
        joins: list[str] = []
        try:
            for controller, files in settings.items():
                group = self.parents[controller] / name
                group.mkdir(exist_ok=True)
                join = str(group / "cgroup.procs")
                if join not in joins:
                    joins.append(join)
                for file, value in files.items():
                    if value is not None:
                        (group / file).write_text(value)
        except OSError as error:
            remove_groups(joins)
            raise RuntimeFailure(f"the control group refuses a limit: {error}", kind="UnsupportedLimit") from error
        return tuple(joins)

    def _settings(self, cpu_millicores: int | None, mem_bytes: int | None) -> dict[str, dict[str, str | None]]:
        settings: dict[str, dict[str, str | None]] = {}
        if mem_bytes is not None:
            if self.versions["memory"] == "cgroup2":
                settings["memory"] = {"memory.max": str(mem_bytes), "memory.swap.max": self._no_swap("memory.swap.max")}
            else:
                settings["memory"] = {"memory.limit_in_bytes": str(mem_bytes)}
        if cpu_millicores is not None:
            quota = max(MIN_QUOTA_US, cpu_millicores * CPU_PERIOD_US // 1000)
            if self.versions["cpu"] == "cgroup2":
                settings["cpu"] = {"cpu.max": f"{quota} {CPU_PERIOD_US}"}
            else:
                settings["cpu"] = {"cpu.cfs_period_us": str(CPU_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
        return settings

    def _no_swap(self, file: str) -> str | None:
        return "0" if (self.parents["memory"] / file).exists() else None

    def clear(self) -> None:
        """Remove every group below the parents, and the parents. Nothing may run in them any more."""
        for parent in set(self.parents.values()):
            with contextlib.suppress(FileNotFoundError):
                children = [child for child in parent.iterdir() if child.is_dir()]
                for group in [*children, parent]:
                    _remove_group(group)


def remove_groups(join_files: tuple[str, ...] | list[str]) -> None:
    """Remove the groups that `make` returned. Processes that have just ended may hold one for an instant more."""
    for path in join_files:
        _remove_group(Path(path).parent)


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + REMOVAL_TIMEOUT_S
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return  # It is empty of processes and costs nothing; the next server tries again.
            time.sleep(0.001)
        else:
            return


@attrs.frozen
class _Own:
    """The group that this process is in, in one hierarchy."""

    controllers: frozenset[str]
    """Empty for version 2."""
    path: Path


def _own_groups(root: Path) -> list[_Own]:
    """Return this process's groups, by their paths in the file system, in every hierarchy that is mounted."""
    mounts: dict[frozenset[str], tuple[str, str]] = {}
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            _, _, _, mounted, point, *_ = before.split(" ")
            names = frozenset(options.split(",")) if kind == "cgroup" else frozenset[str]()
            mounts[names] = (_unescaped(mounted), _unescaped(point))
    found = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, listed, path = line.split(":", 2)
        controllers = frozenset(listed.split(",")) if listed else frozenset[str]()
        for names, (mounted, point) in mounts.items():
            if bool(names) == bool(controllers) and controllers <= names:
                inside = os.path.relpath(path, mounted)
                place = root / point[1:]
                found.append(_Own(controllers, place if inside.startswith("..") else place / inside))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _candidates(own: list[_Own], controller: str) -> list[tuple[Version, Path]]:
    second: list[tuple[Version, Path]] = [("cgroup2", group.path) for group in own if not group.controllers]
    first: list[tuple[Version, Path]] = [("cgroup1", group.path) for group in own if controller in group.controllers]
    return second + first


def _make_parent(group: Path, tag: str, controller: str, version: Version) -> Path:
    """Make the group `tag` below ours, with `controller` at work in its children. Raises OSError."""
    parent = group / tag
    if version == "cgroup1":
        parent.mkdir(exist_ok=True)
        return parent
    if controller not in (group / "cgroup.controllers").read_text().split():
        raise OSError(errno.ENOENT, f"no controller {controller}", str(group))
    parent.mkdir(exist_ok=True)
    try:
        _enable(group, controller)
        _enable(parent, controller)
    except OSError:
        _remove_group(parent)
        raise
    return parent


def _enable(group: Path, controller: str) -> None:
    """Hand `controller` on to the children of `group`.

    A group that hands controllers on may hold no process of its own, except the root, so this process moves into a
    leaf.
    """
    switch = group / "cgroup.subtree_control"
    if controller in switch.read_text().split():
        return
    try:
        switch.write_text(f"+{controller}")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        leaf = group / "sandbox-aio-server"
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(str(os.getpid()))
        switch.write_text(f"+{controller}")
