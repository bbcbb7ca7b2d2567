"""The state directory of the runtime: where everything is, who may use it, and what it still holds of an earlier run.

    <state>/lock                   held by the server that owns the directory
    <state>/snapshots/host/<fingerprint>/   the part of snapshot `host` that is not the machine's own
    <state>/sandboxes/<id>/        record.json, root/ (mount point), upper/, work/, usr.upper/, usr.work/
    <state>/trash/                 what is being removed
    <sockets>/control              where the zygote listens
    <sockets>/s/<16 hex>           where a daemon listens

`<sockets>` is `<state>`, or, since the path of a unix socket has at most 107 bytes, a directory below /tmp when that is too long.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from ..base import RuntimeFailure
from . import removal

__all__ = ["StateDirectory"]

_LONGEST_SOCKET_PATH: Final = 107
_LONGEST_SOCKET_NAME: Final = len("/s/0123456789abcdef")


class StateDirectory:
    """Paths below one state directory. Opening takes the directory for this process; `close` lets go of it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.sandboxes = self.path / "sandboxes"
        self.snapshots = self.path / "snapshots"
        self.trash = self.path / "trash"
        self.sockets = self._place_for_sockets()
        self.control_socket = self.sockets / "control"
        self._lock: int | None = None

    def _place_for_sockets(self) -> Path:
        if len(os.fsencode(self.path)) + _LONGEST_SOCKET_NAME <= _LONGEST_SOCKET_PATH:
            return self.path
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path("/tmp") / f"sandbox-aio-{os.geteuid()}-{digest}"  # noqa: S108 - its owner and mode are checked

    def open(self) -> None:
        """Create what is missing and take the lock. Raises RuntimeFailure if another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise RuntimeFailure(
                    f"another server is using the state directory {self.path}; stop it, or give this one another --state-dir",
                    kind="StateDirectoryInUse",
                ) from None
            self._lock = lock
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        _check_private(self.sockets)
        for directory in (self.sockets / "s", self.snapshots, self.trash):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.sandboxes.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def sandbox(self, id: str) -> Path:
        """Return the directory of one sandbox."""
        return self.sandboxes / id

    def daemon_socket(self, id: str) -> Path:
        """Return the path on which the daemon of one sandbox listens."""
        return self.sockets / "s" / hashlib.sha256(id.encode()).hexdigest()[:16]

    def write_record(self, id: str, record: dict[str, Any]) -> None:
        """Write down what a later server has to know about a sandbox; the last write wins, whole or not at all."""
        path = self.sandbox(id) / "record.json"
        draft = path.with_suffix(".draft")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(record, file)
        draft.rename(path)

    def read_records(self) -> dict[str, dict[str, Any]]:
        """Return every sandbox's record by id; a directory without a readable one was never completed, and is thrown away."""
        records = {}
        for directory in self.sandboxes.iterdir():
            try:
                records[directory.name] = json.loads((directory / "record.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self.discard(directory)
        return records

    def discard(self, path: Path) -> None:
        """Move something out of sight, to be removed by `empty_trash`."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.trash / secrets.token_hex(8))

    def empty_trash(self) -> None:
        """Remove what was discarded. It may take long."""
        for path in list(self.trash.iterdir()):
            removal.remove_tree(str(path))

    def clear(self) -> None:
        """Discard every sandbox and remove every socket."""
        for directory in list(self.sandboxes.iterdir()):
            self.discard(directory)
        for path in (self.sockets / "s").iterdir():
            path.unlink(missing_ok=True)
        self.control_socket.unlink(missing_ok=True)


def _check_private(directory: Path) -> None:
    """Raise RuntimeFailure unless `directory` is a real directory of this user that nobody else may enter."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise RuntimeFailure(f"{directory} belongs to somebody else; give a --state-dir with a shorter path")
    if status.st_mode & 0o077:
        directory.chmod(0o700)
