"""The kernel calls that the standard library of Python 3.11 lacks, through ctypes.

Each function takes and returns plain Python values and raises OSError with the kernel's errno; the error's `filename`
is the name of the call and its main operand, so that a failure can be told from its message alone. Nothing here
allocates state, so everything is safe to call in a child between fork and exec.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ARCHITECTURE",
    "bounding_set_drop",
    "capabilities_set",
    "close_all_except",
    "detached_clone",
    "loopback_up",
    "mount",
    "move_mount",
    "new_mount",
    "overwrite_arguments",
    "pivot_root",
    "prctl",
    "set_process_name",
    "unmount",
    "unshare",
]

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MOUNT_ATTR_RDONLY: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
_MOUNT_ATTR_IDMAP: Final = 0x0010_0000
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1

ARCHITECTURE: Final = platform.machine()
"""`x86_64` or `aarch64`; the runtime refuses to open on any other."""

# The new mount calls have one number everywhere; the old ones do not, and not every libc wraps them.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_CLOSE_RANGE: Final = 436
_SYS_MOUNT_SETATTR: Final = 442
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}.get(ARCHITECTURE, -1)
_SYS_CAPSET: Final = {"x86_64": 126, "aarch64": 91}.get(ARCHITECTURE, -1)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """Call mount(2). `kind` None leaves the type to `flags` (a bind, a remount, a change of propagation)."""
    result = _libc.mount(_encoded(source), _encoded(target), _encoded(kind), flags, _encoded(options))
    _checked(result, f"mount {kind or source or 'propagation'} on {target}")


def unmount(target: str, flags: int = 0) -> None:
    """Call umount2(2)."""
    _checked(_libc.umount2(_encoded(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Call pivot_root(2)."""
    result = _libc.syscall(ctypes.c_long(_SYS_PIVOT_ROOT), _encoded(new_root), _encoded(put_old))
    _checked(result, f"pivot_root {new_root}")


def unshare(flags: int) -> None:
    """Move this process into new namespaces; a new process-id namespace takes effect for its next child."""
    _checked(_libc.unshare(flags), f"unshare {flags:#x}")


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2) with up to four integer arguments, the rest zero."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return _checked(_libc.prctl(option, *padded), f"prctl {option}")


def set_process_name(name: str) -> None:
    """Set the name that ps(1) and top(1) show, at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode())
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def overwrite_arguments() -> None:
    """Blank the command line of this process, which /proc shows to everyone and forks inherit."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    ctypes.memset(start, 0, end - start)


def detached_clone(path: str, *, userns_fd: int | None = None) -> int:
    """Return a detached, read-only, nosuid and nodev copy of the mount that `path` lies on, rooted at `path`.

    With `userns_fd`, ids are mapped as that user namespace maps them: what host uid 0 owns belongs to the sandbox's
    root. That needs CAP_SYS_ADMIN where the file system was mounted. Without it, mounts below `path` come along,
    because a user namespace may not uncover what they hide. The caller closes the descriptor.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if userns_fd is None else 0)
    tree = _checked(
        _libc.syscall(ctypes.c_long(_SYS_OPEN_TREE), ctypes.c_int(_AT_FDCWD), _encoded(path), ctypes.c_uint(flags)),
        f"open_tree {path}",
    )
    wanted = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
    attributes = _MountAttr(attr_set=wanted)
    if userns_fd is not None:
        attributes.attr_set |= _MOUNT_ATTR_IDMAP
        attributes.userns_fd = userns_fd
    try:
        _checked(
            _libc.syscall(
                ctypes.c_long(_SYS_MOUNT_SETATTR),
                ctypes.c_int(tree),
                b"",
                ctypes.c_uint(_AT_EMPTY_PATH),
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            ),
            f"mount_setattr {path}",
        )
    except OSError:
        os.close(tree)
        raise
    return tree


def new_mount(kind: str, options: Iterable[tuple[str, str | None]]) -> int:
    """Return a detached nosuid and nodev mount of a new file system; an option without a value is a flag.

    Unlike `mount`, it takes any number of options, each of at most 255 bytes, and one name as often as it likes.
    """
    context = _checked(
        _libc.syscall(ctypes.c_long(_SYS_FSOPEN), _encoded(kind), ctypes.c_uint(_FSOPEN_CLOEXEC)), f"fsopen {kind}"
    )
    try:
        for name, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            _fsconfig(context, command, name, value)
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None)
        return _checked(
            _libc.syscall(
                ctypes.c_long(_SYS_FSMOUNT),
                ctypes.c_int(context),
                ctypes.c_uint(_FSMOUNT_CLOEXEC),
                ctypes.c_uint(_MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV),
            ),
            f"fsmount {kind}",
        )
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, name: str | None, value: str | None) -> None:
    result = _libc.syscall(
        ctypes.c_long(_SYS_FSCONFIG),
        ctypes.c_int(context),
        ctypes.c_uint(command),
        _encoded(name),
        _encoded(value),
        ctypes.c_int(0),
    )
    _checked(result, f"fsconfig {name or 'create'} {value or ''}".rstrip())


def move_mount(tree: int, target: str) -> None:
    """Attach the detached mount `tree` at `target`."""
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOVE_MOUNT),
        ctypes.c_int(tree),
        b"",
        ctypes.c_int(_AT_FDCWD),
        _encoded(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )
    _checked(result, f"move_mount {target}")


def capabilities_set(mask: int) -> None:
    """Make `mask` the permitted and effective capabilities of this thread, and empty the inheritable ones."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _checked(_libc.syscall(ctypes.c_long(_SYS_CAPSET), header, data), "capset")


def bounding_set_drop(keep: frozenset[int]) -> None:
    """Take every capability that is not in `keep` out of the bounding set."""
    for capability in range(64):
        try:
            present = prctl(PR_CAPBSET_READ, capability)
        except OSError:
            return
        if present and capability not in keep:
            prctl(PR_CAPBSET_DROP, capability)


def loopback_up() -> None:
    """Bring `lo` up in this network namespace; the kernel gives it 127.0.0.1 and ::1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def close_all_except(keep: frozenset[int]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    first = 3
    for descriptor in [*sorted(keep), 0x7FFF_FFFF]:
        if descriptor > first:
            _close_range(first, descriptor - 1)
        first = max(first, descriptor + 1)


def _close_range(first: int, last: int) -> None:
    result = _libc.syscall(ctypes.c_long(_SYS_CLOSE_RANGE), ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))
    if result == -1:
        os.closerange(first, min(last + 1, os.sysconf("SC_OPEN_MAX")))
