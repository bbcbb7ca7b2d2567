"""Giving up, for good, what reaches out of a sandbox. `docs/security.md` tells how these layers go together."""

from __future__ import annotations

import resource
from typing import Final

import attrs

from . import seccomp, syscalls

__all__ = [
    "KEPT_CAPABILITIES",
    "PROFILES",
    "Profile",
    "drop",
    "hide_this_process",
    "limit_capabilities",
    "limit_resources",
]

KEPT_CAPABILITIES: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
"""All of them hold over the sandbox's own user namespace only. CAP_SYS_ADMIN and CAP_NET_ADMIN are gone: much of the
kernel is reachable only with them."""

FOR_BUILDS: Final = {"CAP_SYS_ADMIN": 21}
"""What a builder of images needs beside them: it mounts, and makes namespaces, within the sandbox's own."""

_MAX_PROCESSES: Final = 16_384
_MAX_OPEN_FILES: Final = 65_536


@attrs.frozen
class Profile:
    """What the processes of a sandbox may do."""

    capabilities: frozenset[int]
    seccomp: bytes


def _filter(*, builds: bool) -> bytes:
    known = syscalls.ARCHITECTURE in seccomp.ARCHITECTURES
    return seccomp.program(syscalls.ARCHITECTURE, allowed=seccomp.FOR_BUILDS if builds else ()) if known else b""


PROFILES: Final = {
    "default": Profile(frozenset(KEPT_CAPABILITIES.values()), _filter(builds=False)),
    "build": Profile(frozenset((*KEPT_CAPABILITIES.values(), *FOR_BUILDS.values())), _filter(builds=True)),
}


def hide_this_process() -> None:
    """Close /proc/1/{environ,exe,fd,maps,mem,root} to the sandbox: they are the zygote's, hence the host's."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def limit_resources() -> None:
    """Bound what the kernel would otherwise bound by the host's settings. A hard limit is only ever lowered.

    A core limit of one byte is the value at which Linux also leaves a `core_pattern` alone that pipes into a program
    of the host.
    """
    for limit, wanted in (
        (resource.RLIMIT_CORE, 1),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
    ):
        _, hard = resource.getrlimit(limit)
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (bound, bound))


def limit_capabilities(profile: str) -> None:
    """Let no program that is started, by whomever, have more than the kept capabilities. This process keeps its own."""
    syscalls.bounding_set_drop(PROFILES[profile].capabilities)


def drop(profile: str) -> None:
    """Keep only harmless capabilities, never gain any by starting a program, and filter system calls from here on."""
    kept = PROFILES[profile]
    syscalls.capabilities_set(sum(1 << number for number in kept.capabilities))
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(kept.seccomp)
