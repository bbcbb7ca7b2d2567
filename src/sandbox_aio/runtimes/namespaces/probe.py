"""What this machine allows, in words for its operator."""

from __future__ import annotations

import errno
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..base import Capabilities, Unavailable
from . import syscalls
from .idmap import IdMap, region_is_available

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cgroups import Cgroups

__all__ = ["NAME", "capabilities", "explain", "preconditions"]

NAME: Final = "namespaces"
_CAP_SYS_ADMIN: Final = 21
_IN_A_CONTAINER: Final = (
    "if this is a container, start it with --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
)
_SWITCHES: Final = (
    # A file below /proc/sys, the value that forbids user namespaces, and what to do about it.
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "run the server as root, or: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("kernel/unprivileged_userns_clone", "0", "run the server as root, or: sysctl kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
)


def preconditions() -> Unavailable | None:
    """Return why the runtime cannot run here, as far as that can be told without trying."""
    if sys.platform != "linux":
        return _unavailable(f"it needs Linux, and this is {platform.system()}", "run the server on Linux")
    if syscalls.ARCHITECTURE not in ("x86_64", "aarch64"):
        return _unavailable(f"it does not know {syscalls.ARCHITECTURE}", "run the server on x86_64 or aarch64")
    if os.geteuid() == 0:
        if not _effective_capabilities() >> _CAP_SYS_ADMIN & 1:
            return _unavailable("it is run as root without CAP_SYS_ADMIN", "run the server as an ordinary user")
        if not region_is_available():
            return _unavailable(
                "it is run as the root of a user namespace that has too few ids to give some to sandboxes",
                "run the server as an ordinary user",
            )
    return None


def explain(failure: Mapping[str, Any], state_dir: Path) -> Unavailable:
    """Say why a boot that should have worked did not. `failure` is the zygote's answer."""
    stage, number = str(failure.get("stage")), failure.get("errno")
    reason = f"the kernel refuses, at the step {stage!r}: {failure.get('error')}"
    if number in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        for switch, forbids, hint in _SWITCHES:
            if _read(f"/proc/sys/{switch}") == forbids and (os.geteuid() != 0 or switch.startswith("user/")):
                return _unavailable(reason, hint)
    if stage == "mount the layers" and number == errno.ENODEV:
        return _unavailable(reason, "modprobe overlay")
    if stage == "mount the layers":
        return _unavailable(
            reason, f"use Linux 5.11 or newer, and put the state directory, {state_dir}, on ext4, xfs, btrfs or tmpfs"
        )
    return _unavailable(reason, _IN_A_CONTAINER)


def capabilities(ids: IdMap, cgroups: Cgroups, unmapped: frozenset[str], *, shared_ids: bool) -> Capabilities:
    """Return what is enforced, given what a trial boot has shown."""
    notes = []
    if ids.count == 1:
        notes.append(
            "every sandbox runs as this one user, who is root inside, there is no other user inside, and the machine's "
            "own programs cannot be changed; run the server as root to give each sandbox 65,536 ids of its own"
        )
    elif shared_ids:
        notes.append("the file system of the state directory cannot map ids, so all sandboxes share one range of them")
    if read_only := sorted(path for path in unmapped if len(Path(path).parts) == 2):
        notes.append(f"a sandbox cannot change what is in {', '.join(read_only)}: its file system cannot map ids")
    missing = [name for name in ("memory", "cpu") if cgroups.version(name) is None]
    if missing:
        notes.append(
            f"no limit of {' and '.join(missing)} can be given: there is no control group that this user may use"
        )
    return Capabilities(
        runtime=NAME,
        strength="namespace",
        uids="single" if ids.count == 1 else "range",
        memory=cgroups.version("memory") or "none",
        cpu=cgroups.version("cpu") or "none",
        pids="rlimit",
        disk="none",
        network="loopback",
        seccomp=True,
        notes=tuple(notes),
    )


def _unavailable(reason: str, hint: str) -> Unavailable:
    return Unavailable(runtime=NAME, reason=reason, hint=hint)


def _effective_capabilities() -> int:
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
