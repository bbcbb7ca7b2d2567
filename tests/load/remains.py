"""Finds what a server leaves on the machine: processes, mounts, cgroups, directories."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CGROUPS = Path("/sys/fs/cgroup")


def wait_until_empty(found: Callable[[], list[str]], seconds: float = 10.0) -> list[str]:
    """Return what `found` still finds after at most `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := found()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def mounted(state_dir: Path) -> list[str]:
    """Return the mounts, in the mount namespace of any process, whose path or whose layers are below `state_dir`.

    A process that still runs in a sandbox shows here, since it keeps its sandbox's root mounted. The mounts of another
    user's processes cannot be read by an ordinary user.
    """
    found = []
    for process in _processes():
        lines = _read(process / "mountinfo").splitlines()
        found += [f"{process.name}: {line}" for line in lines if str(state_dir) in line]
    return found


def running(state_dir: Path) -> list[str]:
    """Return the command lines of processes that name `state_dir`."""
    lines = {process.name: _read(process / "cmdline").replace("\0", " ") for process in _processes()}
    return [f"{pid}: {line}" for pid, line in lines.items() if str(state_dir) in line and pid != str(os.getpid())]


def cgroups(ids: Iterable[str]) -> list[str]:
    """Return the control groups whose name contains one of the sandboxes' `ids`."""
    wanted = tuple(ids)
    return [folder for folder, _, _ in os.walk(CGROUPS) if any(id in folder for id in wanted)]


def files(state_dir: Path) -> set[str]:
    """Return every path below `state_dir`."""
    return {os.path.join(folder, name) for folder, folders, names in os.walk(state_dir) for name in folders + names}


def _processes() -> Iterable[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # It ended, or is somebody else's.
        return ""
