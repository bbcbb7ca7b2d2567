"""The system calls that a sandbox may not make, as a classic BPF program.

A deny list: `docs/security.md` gives the reason for every entry and the programs it breaks. A call of another
architecture (32-bit x86, x32) fails with ENOSYS as a whole, since its numbers would slip past the list.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING, Final

from . import syscalls

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["ARCHITECTURES", "DENIED", "install", "program"]

# name: (number on x86_64, number on aarch64, errno). None: the architecture has no such call.
DENIED: Final[dict[str, tuple[int | None, int | None, int]]] = {
    # New views of the file system.
    "mount": (165, 40, errno.EPERM),
    "umount2": (166, 39, errno.EPERM),
    "pivot_root": (155, 41, errno.EPERM),
    "open_tree": (428, 428, errno.EPERM),
    "move_mount": (429, 429, errno.EPERM),
    "fsopen": (430, 430, errno.EPERM),
    "fsconfig": (431, 431, errno.EPERM),
    "fsmount": (432, 432, errno.EPERM),
    "fspick": (433, 433, errno.EPERM),
    "mount_setattr": (442, 442, errno.EPERM),
    "open_tree_attr": (467, 467, errno.EPERM),
    "open_by_handle_at": (304, 265, errno.EPERM),
    "swapon": (167, 224, errno.EPERM),
    "swapoff": (168, 225, errno.EPERM),
    "quotactl": (179, 60, errno.EPERM),
    "quotactl_fd": (443, 443, errno.EPERM),
    "fanotify_init": (300, 262, errno.EPERM),
    # New namespaces. `clone` is looked at by its flags, below.
    "unshare": (272, 97, errno.EPERM),
    "setns": (308, 268, errno.EPERM),
    "clone3": (435, 435, errno.ENOSYS),
    # Keyrings are shared by everything with the same uid.
    "add_key": (248, 217, errno.EPERM),
    "request_key": (249, 218, errno.EPERM),
    "keyctl": (250, 219, errno.EPERM),
    # Large, young or machine-wide parts of the kernel.
    "bpf": (321, 280, errno.EPERM),
    "perf_event_open": (298, 241, errno.EPERM),
    "userfaultfd": (323, 282, errno.EPERM),
    "io_uring_setup": (425, 425, errno.ENOSYS),
    "io_uring_enter": (426, 426, errno.ENOSYS),
    "io_uring_register": (427, 427, errno.ENOSYS),
    "kexec_load": (246, 104, errno.EPERM),
    "kexec_file_load": (320, 294, errno.EPERM),
    "create_module": (174, None, errno.EPERM),
    "init_module": (175, 105, errno.EPERM),
    "delete_module": (176, 106, errno.EPERM),
    "finit_module": (313, 273, errno.EPERM),
    "query_module": (178, None, errno.EPERM),
    "get_kernel_syms": (177, None, errno.EPERM),
    "reboot": (169, 142, errno.EPERM),
    "syslog": (103, 116, errno.EPERM),
    "acct": (163, 89, errno.EPERM),
    "settimeofday": (164, 170, errno.EPERM),
    "clock_settime": (227, 112, errno.EPERM),
    "iopl": (172, None, errno.EPERM),
    "ioperm": (173, None, errno.EPERM),
    "lookup_dcookie": (212, 18, errno.EPERM),
    "nfsservctl": (180, 42, errno.EPERM),
    "vhangup": (153, 58, errno.EPERM),
    "uselib": (134, None, errno.EPERM),
    "_sysctl": (156, None, errno.EPERM),
}

FOR_BUILDS: Final = frozenset(("mount", "umount2", "pivot_root", "unshare", "setns"))
"""What a builder of images is not denied."""

ARCHITECTURES: Final = ("x86_64", "aarch64")
_AUDIT_ARCH: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_NUMBERS: Final = {
    "x86_64": {"clone": 56, "ioctl": 16, "socket": 41},
    "aarch64": {"clone": 220, "ioctl": 29, "socket": 198},
}
_X32_BIT: Final = 0x4000_0000
_NEW_NAMESPACES: Final = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWCGROUP
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
)
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_SOCKET_FAMILIES: Final = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. AF_VSOCK above all is not among them: no namespace confines it."""

_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER_OR_EQUAL: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_RET_ALLOW: Final = 0x7FFF_0000
_RET_ERRNO: Final = 0x0005_0000
_SECCOMP_MODE_FILTER: Final = 2


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _fail(number: int) -> bytes:
    return _instruction(_RETURN, _RET_ERRNO | number)


def program(architecture: str, *, allowed: Collection[str] = ()) -> bytes:
    """Return the filter for `architecture`: eight bytes for each BPF instruction. `allowed` are not denied after all;
    with `unshare` among them, `clone` may make namespaces too.

    Every test stands beside its own verdict, so that no jump is longer than a handful of instructions.
    """
    numbers = _NUMBERS[architecture]
    column = 0 if architecture == "x86_64" else 1
    allow = _instruction(_RETURN, _RET_ALLOW)
    code = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCH[architecture], if_true=1),
        _fail(errno.ENOSYS),
        _instruction(_LOAD, _NR),
    ]
    if architecture == "x86_64":
        code += [_instruction(_JUMP_GREATER_OR_EQUAL, _X32_BIT, if_false=1), _fail(errno.ENOSYS)]
    for name, (*by_architecture, number) in DENIED.items():
        call = by_architecture[column]
        if call is not None and name not in allowed:
            code += [_instruction(_JUMP_EQUAL, call, if_false=1), _fail(number)]
    if "unshare" not in allowed:
        code += [
            _instruction(_JUMP_EQUAL, numbers["clone"], if_false=4),
            _instruction(_LOAD, _ARG0),
            _instruction(_JUMP_ANY_BIT, _NEW_NAMESPACES, if_false=1),
            _fail(errno.EPERM),
            allow,
        ]
    code += [
        _instruction(_JUMP_EQUAL, numbers["ioctl"], if_false=5),
        _instruction(_LOAD, _ARG1),
        _instruction(_JUMP_EQUAL, _TIOCSTI, if_true=1),
        _instruction(_JUMP_EQUAL, _TIOCLINUX, if_false=1),
        _fail(errno.EPERM),
        allow,
        _instruction(_JUMP_EQUAL, numbers["socket"], if_false=len(_SOCKET_FAMILIES) + 2),
        _instruction(_LOAD, _ARG0),
    ]
    for index, family in enumerate(_SOCKET_FAMILIES):
        code.append(_instruction(_JUMP_EQUAL, family, if_true=len(_SOCKET_FAMILIES) - index))
    code += [_fail(errno.EAFNOSUPPORT), allow]
    return b"".join(code)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(code: bytes) -> None:
    """Put the filter on this process and all that descends from it. PR_SET_NO_NEW_PRIVS must be set already."""
    buffer = ctypes.create_string_buffer(code, len(code))
    header = _Program(len(code) // 8, ctypes.addressof(buffer))
    syscalls.prctl(syscalls.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))
