"""The state directory of the runtime: where everything is, and who may use it.

    <state>/lock             held by the server that owns the directory
    <state>/zygote.lock      held by its zygote, which may outlive it
    <state>/zygote.log       what the zygote has to say
    <state>/snapshots/       skeletons
    <state>/sandboxes/<id>/  one sandbox: see `sandbox_directory`
    <state>/layers/<number>/ one layer: see `file_systems`
    <state>/trash/           what is being removed
    <sockets>/control        where the zygote listens
    <sockets>/s/<16 hex>     where a daemon listens

`<sockets>` is `<state>`, or a directory below /tmp when that is too long: the path of a unix socket has at most 107
bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from ... import removal
from ..base import RuntimeFailure

__all__ = ["StateDirectory"]

PREDECESSOR_TIMEOUT_S: Final = 20.0
"""How long the zygote of a server that was killed may take to clean up."""
_LONGEST_SOCKET_PATH: Final = 107
_LONGEST_SOCKET_NAME: Final = len("/s/0123456789abcdef")


class StateDirectory:
    """Paths below one state directory, and its locks. Everything here blocks, for the time of a few file operations."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path.absolute()
        self.sandboxes: Path = self.path / "sandboxes"
        self.snapshots: Path = self.path / "snapshots"
        self.layers: Path = self.path / "layers"
        self.trash: Path = self.path / "trash"
        self.log: Path = self.path / "zygote.log"
        self.sockets: Path = self._place_for_sockets()
        self.control_socket: Path = self.sockets / "control"
        self._lock: int | None = None

    def _place_for_sockets(self) -> Path:
        if len(os.fsencode(self.path)) + _LONGEST_SOCKET_NAME <= _LONGEST_SOCKET_PATH:
            return self.path
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path("/tmp", f"sandbox-aio-{os.geteuid()}-{digest}")

    @property
    def is_open(self) -> bool:
        """Whether this process holds the directory."""
        return self._lock is not None

    def open(self) -> None:
        """Create what is missing and take the lock.

        Raises RuntimeFailure if another process holds it, or if the place for sockets belongs to somebody else.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            taken = self.try_lock()
        except OSError as error:
            raise RuntimeFailure(f"the state directory {self.path} cannot be used: {error.strerror}") from error
        if not taken:
            raise RuntimeFailure(
                f"another server is using the state directory {self.path}; stop it, or choose another --state-dir",
                kind="StateDirectoryInUse",
            )
        try:
            self.sockets.mkdir(mode=0o700, exist_ok=True)
            _require_ours(self.sockets)
            for directory in (self.sockets / "s", self.snapshots, self.trash):
                directory.mkdir(mode=0o700, exist_ok=True)
            self._make_sandboxes()
        except BaseException:
            self.close()
            raise

    def _make_sandboxes(self) -> None:
        """Make the directory that a sandbox's root may search, and that of the layers.

        What belongs to root in a layer belongs to the host's root too, set-user-id programs among it: nobody else may
        get there, whoever may search the state directory.
        """
        for directory, mode in ((self.sandboxes, 0o711), (self.layers, 0o700)):
            directory.mkdir(exist_ok=True)
            directory.chmod(mode)

    def open_layers(self) -> None:
        """Let a sandbox's root search the layers though their ids are not mapped. They belong to no user then."""
        self.layers.chmod(0o711)

    def try_lock(self) -> bool:
        """Take the lock for this process, if it has it not yet, and tell whether it has it now. Raises OSError."""
        while self._lock is None:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_ino == (self.path / "lock").stat().st_ino:
                    self._lock = lock
                    break
            except BlockingIOError:
                os.close(lock)
                return False
            except FileNotFoundError:
                pass
            os.close(lock)  # Its last owner removed the file between our two looks at it.
        return True

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def try_zygote_lock(self) -> int | None:
        """Return a descriptor that holds the zygote's lock, for one to inherit; None while there is another."""
        lock = os.open(self.path / "zygote.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    async def zygote_lock(self) -> int:
        """Return the zygote's lock once the last zygote has ended. Raises RuntimeFailure after 20 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PREDECESSOR_TIMEOUT_S):
                while (lock := self.try_zygote_lock()) is None:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
                return lock
        raise RuntimeFailure(
            f"the last server's zygote still holds {self.path / 'zygote.lock'}; kill the process named sandbox-zygote"
        )

    def sandbox(self, id: str) -> Path:
        """Return the directory of one sandbox."""
        return self.sandboxes / id

    def daemon_socket(self, id: str) -> Path:
        """Return the path on which the daemon of one sandbox listens."""
        return self.sockets / "s" / hashlib.sha256(id.encode()).hexdigest()[:16]

    def discard(self, path: Path) -> None:
        """Move something out of sight, to be removed by `empty_trash`."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.trash / secrets.token_hex(8))

    def empty_trash(self) -> None:
        """Remove what was discarded; it may take long. Not for two threads at once. Raises OSError."""
        for path in list(self.trash.iterdir()):
            removal.remove_tree(str(path))

    def clear(self) -> None:
        """Remove everything except the skeletons and the locks. Nothing may run any more. Raises OSError."""
        for path in (self.trash, self.sockets / "s"):
            removal.remove_tree(str(path))
            path.mkdir(mode=0o700)
        for path in (self.sandboxes, self.layers):
            removal.remove_tree(str(path))
        self._make_sandboxes()
        self.control_socket.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove everything that the runtime put into the directory, and the directory itself if it is empty then.

        This process must hold both locks.
        """
        for path in (self.sandboxes, self.layers, self.snapshots, self.trash, self.sockets / "s"):
            removal.remove_tree(str(path))
        for path in (self.control_socket, self.log, self.path / "zygote.lock", self.path / "lock"):
            path.unlink(missing_ok=True)
        for path in (self.sockets, self.path):
            with contextlib.suppress(OSError):
                path.rmdir()


def _require_ours(directory: Path) -> None:
    """Raise RuntimeFailure unless `directory` is a directory of this user that nobody else may write to."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise RuntimeFailure(
            f"{directory} must be a directory that belongs to uid {os.geteuid()} and that nobody else may write to; "
            "give another --state-dir"
        )
