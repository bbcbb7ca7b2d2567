"""What a daemon is handed at its start: the socket on which it listens, and its configuration."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..base import SandboxSpec

__all__ = ["FILES_ROOT", "configuration", "listener"]

FILES_ROOT: Final = "/home/user"
LISTEN_BACKLOG: Final = 4096
"""The kernel lowers it to net.core.somaxconn."""


@contextlib.contextmanager
def listener(path: Path) -> Iterator[int]:
    """Yield a descriptor that listens on `path`, for this user alone. Who has inherited it listens on afterwards.

    It is bound here, outside of every namespace of the sandbox, so connections wait in its queue from now on.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unbound:
        path.unlink(missing_ok=True)
        unbound.bind(str(path))
        path.chmod(0o600)
        unbound.listen(LISTEN_BACKLOG)
        yield unbound.fileno()


@contextlib.contextmanager
def configuration(spec: SandboxSpec) -> Iterator[int]:
    """Yield a descriptor from which the daemon reads its configuration, JSON.

    It goes past the zygote, whose memory is copied into every sandbox: a secret that it had read, all of them would
    have.
    """
    content = {
        "sandbox_id": spec.id,
        "secret": spec.secret,
        "work_dir": spec.work_dir,
        "user": spec.user,
        "env_vars": dict(spec.env_vars),
        "files_root": FILES_ROOT,
        "hostname": spec.hostname,
    }
    descriptor = os.memfd_create("configuration", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, json.dumps(content).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
