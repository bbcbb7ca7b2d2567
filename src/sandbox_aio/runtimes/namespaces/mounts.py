"""The sandbox's file systems, as its first process mounts them inside its own mount namespace.

The working directory is the sandbox's directory on the host until `enter` has pivoted into the new root. All of it
is done by the sandbox's root, so the kernel refuses whatever a stranger may not do.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from . import syscalls
from .syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .plan import Preparation

__all__ = ["enter", "make_private", "mount_dev", "mount_overlays", "mount_proc", "protect_proc"]

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = (
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
)
_READ_ONLY_PROC: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_MASKED_PROC: Final = (
    "acpi",
    "asound",
    "config.gz",
    "interrupts",
    "iomem",
    "ioports",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "modules",
    "mtrr",
    "pagetypeinfo",
    "sched_debug",
    "scsi",
    "slabinfo",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
)
_OPTIONS_BYTES: Final = 4096
"""What mount(2) takes of options, with a NUL at the end, whatever the size of a page."""
_SHM_BYTES: Final = 256 * 1024 * 1024
_LOCKED_DOWN: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC


def make_private() -> None:
    """Keep what is mounted here from showing on the host, and what the host mounts from showing here."""
    syscalls.mount(None, "/", None, MS_REC | MS_PRIVATE)


def mount_overlays(preparation: Preparation, trees: Sequence[int]) -> None:
    """Mount every overlay on `root` and below it; `trees` are the detached mounts of `preparation.trees`.

    An overlay's lower directories must be mounted somewhere in this namespace. They are attached right where the
    overlay will cover them, and named through their descriptors, so neither their host paths nor a mount point of
    their own is needed. What is shelved is named relative to the shelf, which is the working directory meanwhile: that
    is short, and a mount's options are a page at most.
    """
    rest = list(trees)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    base = f"/proc/self/fd/{here}"
    if preparation.shelf is not None:
        shelf = rest.pop(0)
        syscalls.move_mount(shelf, "root")
        os.fchdir(shelf)
        os.close(shelf)
    for overlay in preparation.overlays:
        own = [rest.pop(0) for _ in overlay.layers]
        target = f"{base}/root/{overlay.target}".rstrip("/")
        for tree in own:
            syscalls.move_mount(tree, target)
        lower = [*overlay.shelved, *(f"/proc/self/fd/{tree}" for tree in own)]
        _mount_overlay(target, lower, upper=f"{base}/{overlay.upper}", work=f"{base}/{overlay.work}")
        for tree in own:
            os.close(tree)
    os.fchdir(here)
    os.close(here)


def _mount_overlay(target: str, lower: Sequence[str], *, upper: str, work: str) -> None:
    options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work},userxattr"
    if len(options) < _OPTIONS_BYTES:
        syscalls.mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options)
    else:  # Since Linux 6.5 the lower directories can be named one by one.
        named = [*(("lowerdir+", path) for path in lower), ("upperdir", upper), ("workdir", work), ("userxattr", None)]
        tree = syscalls.new_mount("overlay", named)
        syscalls.move_mount(tree, target)
        os.close(tree)


def mount_dev() -> None:
    """Mount a small /dev: the harmless devices of the host, terminals of the sandbox's own, shared memory."""
    syscalls.mount("tmpfs", "root/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k,nr_inodes=64")
    for name in _DEVICES:
        os.close(os.open(f"root/dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        syscalls.mount(f"/dev/{name}", f"root/dev/{name}", None, MS_BIND)
    os.mkdir("root/dev/pts", 0o755)
    syscalls.mount("devpts", "root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    os.mkdir("root/dev/shm")
    syscalls.mount("tmpfs", "root/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={_SHM_BYTES}")
    for destination, name in _LINKS:
        os.symlink(destination, f"root/dev/{name}")


def mount_proc() -> None:
    """Mount a /proc that shows only the sandbox's processes."""
    syscalls.mount("proc", "root/proc", "proc", _LOCKED_DOWN)


def enter() -> None:
    """Make `root` the root directory, and let go of everything else that is mounted."""
    os.chdir("root")
    syscalls.pivot_root(".", ".")
    syscalls.unmount(".", syscalls.MNT_DETACH)
    os.chdir("/")


def protect_proc() -> None:
    """Cover what /proc tells of the machine as a whole, and make its switches read-only."""
    present = set(os.listdir("/proc"))
    for name in _READ_ONLY_PROC:
        if name in present:
            path = f"/proc/{name}"
            syscalls.mount(path, path, None, MS_BIND)
            syscalls.mount(None, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | _LOCKED_DOWN)
    for name in _MASKED_PROC:
        path = f"/proc/{name}"
        # Their owner, the host's root, does not exist here: what others may not read is closed already.
        if name in present and (mode := os.stat(path).st_mode) & 0o007:
            if stat.S_ISDIR(mode):
                syscalls.mount("tmpfs", path, "tmpfs", _LOCKED_DOWN | MS_RDONLY, "size=0,nr_inodes=1")
            else:
                syscalls.mount("/dev/null", path, None, MS_BIND)
