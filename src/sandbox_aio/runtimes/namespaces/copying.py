"""Copying what a sandbox has changed into a layer, once while it runs and once more while it stands still.

The sandbox is hostile and may change anything at any time while it runs: so every directory is opened below its parent
without following links, every file is looked at after it was opened, and what the first copy brought is trusted for
nothing but what the second finds unchanged. The target belongs to us alone.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

import attrs

from ..base import RuntimeFailure

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["CopyLimits", "TreeCopy"]

MAX_DEPTH: Final = 512
"""Directories in directories; each takes two descriptors while it is copied."""
MARGIN_NS: Final = 20_000_000
"""A change within this time before a copy began may carry the same timestamp as one after it."""
OPAQUE: Final = "user.overlay.opaque"
_BLOCK: Final = 1 << 24
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@attrs.frozen(kw_only=True)
class CopyLimits:
    """How much may be captured."""

    max_bytes: int = 1 << 40
    max_entries: int = 5_000_000


@attrs.frozen
class _Seen:
    """What was copied, and of what."""

    inode: int
    changed: int
    """Its ctime, in nanoseconds."""
    copied: int
    """When the copy began, on the same clock."""
    size: int


class TreeCopy:
    """One tree in the making.

    `offset`: what is taken from the ids of files, so that they are those that programs in the sandbox see. `excluded`:
    paths, relative to the source, that are left out.
    """

    def __init__(self, target: str, *, offset: int, limits: CopyLimits, excluded: Collection[str] = ()) -> None:
        self._target = target
        self._offset = offset
        self._limits = limits
        self._excluded = frozenset(excluded)
        self._seen: dict[str, _Seen] = {}
        self._before: dict[str, _Seen] = {}
        self._directories: dict[str, os.stat_result] = {}
        self._links: dict[tuple[int, int], str] = {}
        self._mapped: Collection[str] = ()
        self._frozen = False
        self.entries: int = 0
        self.size_bytes: int = 0
        self.copied: int = 0
        """Files that the last pass had to copy."""

    def copy(self, sources: Collection[tuple[str, str]], *, frozen: bool, mapped: Collection[str] = ()) -> None:
        """Bring the target up to date. `sources` are directories and where they go to, `""` for the target itself.

        `frozen`: nothing changes any more, so what cannot be read now is an error. `mapped`: paths within a source that
        may change without leaving a trace. Blocks. Raises RuntimeFailure for what is too much; OSError.
        """
        self._frozen, self._mapped = frozen, mapped
        self._links.clear()
        self._directories.clear()
        self.entries = self.size_bytes = self.copied = 0
        self._before, self._seen = self._seen, {}
        for source, place in sources:
            self._copy_source(source, place)
        if frozen:
            self._remove_what_is_gone()

    def finish(self) -> None:
        """Give the directories their owners, modes and times. Blocks."""
        for path, status in sorted(self._directories.items(), reverse=True):
            target = f"{self._target}/{path}".rstrip("/")
            self._own(target, status, None)
            os.chmod(target, stat.S_IMODE(status.st_mode))
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _copy_source(self, source: str, place: str) -> None:
        here = os.open(source, _DIRECTORY)
        try:
            if place and not os.listdir(here):
                return
            if place:
                os.makedirs(f"{self._target}/{place}", mode=0o700, exist_ok=True)
            there = os.open(f"{self._target}/{place}", _DIRECTORY)
            try:
                self._directory(here, there, place, "", 0)
            finally:
                os.close(there)
        finally:
            os.close(here)

    def _directory(self, here: int, there: int, place: str, way: str, depth: int) -> None:
        """Copy what is in a directory. `way` is its path within the source."""
        if depth > MAX_DEPTH:
            raise RuntimeFailure(f"directories are nested more than {MAX_DEPTH} deep", kind="SnapshotTooLarge")
        path = f"{place}/{way}".strip("/")
        self._directories[path] = os.fstat(here)
        _copy_attributes(here, there)
        for name in sorted(os.listdir(here)):
            inner = f"{way}/{name}".lstrip("/")
            if inner in self._excluded and not place:
                continue
            try:
                self._entry(here, there, name, place, inner, depth)
            except FileNotFoundError:
                if self._frozen:
                    raise
            except OSError as error:
                if self._frozen or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
                    raise

    def _entry(self, here: int, there: int, name: str, place: str, way: str, depth: int) -> None:
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        path = f"{place}/{way}".lstrip("/")
        self.entries += 1
        if self.entries > self._limits.max_entries:
            raise RuntimeFailure(
                f"the sandbox has changed more than {self._limits.max_entries:,} files", kind="SnapshotTooLarge"
            )
        if stat.S_ISDIR(status.st_mode):
            self._make_room(there, name, path, directory=True)
            inner_here = self._open(name, here, _DIRECTORY, status)
            try:
                inner_there = os.open(name, _DIRECTORY, dir_fd=there)
                try:
                    self._directory(inner_here, inner_there, place, way, depth + 1)
                finally:
                    os.close(inner_there)
            finally:
                os.close(inner_here)
            return
        if stat.S_ISREG(status.st_mode):
            self.size_bytes += status.st_size
            if self.size_bytes > self._limits.max_bytes:
                raise RuntimeFailure(
                    f"the sandbox has written more than {self._limits.max_bytes:,} bytes", kind="SnapshotTooLarge"
                )
        self._other(here, there, name, path, way, status)

    def _other(self, here: int, there: int, name: str, path: str, way: str, status: os.stat_result) -> None:
        identity = (status.st_dev, status.st_ino)
        first = self._links.get(identity) if status.st_nlink > 1 else None
        known = self._before.get(path)
        current = (
            known is not None
            and known.inode == status.st_ino
            and known.changed == status.st_ctime_ns
            and known.size == status.st_size
            and status.st_ctime_ns < known.copied - MARGIN_NS
            and f"/{way}" not in self._mapped
        )
        if status.st_nlink > 1:
            self._links.setdefault(identity, path)
        if current and first is None:
            assert known is not None
            self._seen[path] = known
            return
        began = time.time_ns()
        self._make_room(there, name, path, directory=False)
        if first is not None:
            os.link(f"{self._target}/{first}", name, dst_dir_fd=there, follow_symlinks=False)
        elif not self._make(here, there, name, status):
            return
        self.copied += 1
        self._seen[path] = _Seen(status.st_ino, status.st_ctime_ns, began, status.st_size)

    def _make(self, here: int, there: int, name: str, status: os.stat_result) -> bool:
        mode = status.st_mode
        if stat.S_ISREG(mode):
            self._file(here, there, name, status)
            return True
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISFIFO(mode):
            os.mknod(name, mode, status.st_rdev, dir_fd=there)
        else:
            return False  # A socket means nothing without its process.
        self._own(name, status, there)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)
        return True

    def _file(self, here: int, there: int, name: str, status: os.stat_result) -> None:
        source = self._open(name, here, _FILE, status)
        try:
            status = os.fstat(source)
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
            try:
                _copy_content(source, target, status.st_size)
                if self._offset:
                    os.fchown(target, *self._ids(status))
                os.fchmod(target, stat.S_IMODE(status.st_mode))
                _copy_attributes(source, target)
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _open(self, name: str, here: int, flags: int, status: os.stat_result) -> int:
        """Open something for reading that its mode may forbid even to its owner."""
        try:
            return os.open(name, flags, dir_fd=here)
        except PermissionError:
            if not self._frozen:
                raise
            os.chmod(name, stat.S_IMODE(status.st_mode) | 0o500, dir_fd=here)
            try:
                return os.open(name, flags, dir_fd=here)
            finally:
                os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here)

    def _own(self, path: str, status: os.stat_result, there: int | None) -> None:
        if self._offset:
            os.chown(path, *self._ids(status), dir_fd=there, follow_symlinks=False)

    def _ids(self, status: os.stat_result) -> tuple[int, int]:
        """A whiteout and what the runtime has made belong to the host's root."""
        return max(status.st_uid - self._offset, 0), max(status.st_gid - self._offset, 0)

    def _make_room(self, there: int, name: str, path: str, *, directory: bool) -> None:
        """Take away what an earlier pass has put in the place, unless both are directories."""
        try:
            present = os.stat(name, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            if directory:
                os.mkdir(name, 0o700, dir_fd=there)
            return
        if stat.S_ISDIR(present.st_mode):
            if directory:
                return
            self._remove_tree(there, name)
        else:
            os.unlink(name, dir_fd=there)
        if directory:
            os.mkdir(name, 0o700, dir_fd=there)

    def _remove_tree(self, there: int, name: str) -> None:
        inner = os.open(name, _DIRECTORY, dir_fd=there)
        try:
            for entry in os.listdir(inner):
                if stat.S_ISDIR(os.stat(entry, dir_fd=inner, follow_symlinks=False).st_mode):
                    self._remove_tree(inner, entry)
                else:
                    os.unlink(entry, dir_fd=inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=there)

    def _remove_what_is_gone(self) -> None:
        waiting = [""]
        while waiting:
            here = waiting.pop()
            folder = f"{self._target}/{here}"
            descriptor = os.open(folder, _DIRECTORY)
            try:
                for name in os.listdir(descriptor):
                    path = f"{here}/{name}".lstrip("/")
                    if path in self._directories:
                        waiting.append(path)
                    elif path not in self._seen:
                        if stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                            self._remove_tree(descriptor, name)
                        else:
                            os.unlink(name, dir_fd=descriptor)
            finally:
                os.close(descriptor)


def _copy_content(source: int, target: int, size: int) -> None:
    """Copy data, and leave holes where there are holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        left = end - start
        while left > 0:
            try:
                done = os.copy_file_range(source, target, min(left, _BLOCK))
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                done = os.sendfile(target, source, None, min(left, _BLOCK))
            if not done:
                break
            left -= done
        if left:
            break  # It became shorter meanwhile.
        at = end
    os.ftruncate(target, size)


def _copy_attributes(source: int, target: int) -> None:
    """Copy extended attributes, but for what overlayfs notes for itself."""
    for name in os.listxattr(source):
        if name == OPAQUE or not name.startswith(("user.overlay.", "trusted.")):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENODATA, errno.EOPNOTSUPP):
                    raise
