"""Copying what a sandbox has changed into a layer, once while it runs and once more while it stands still.

The sandbox is hostile and may change anything at any time while it runs: so every directory is opened below its parent
without following links, every file is looked at after it was opened, and what the first copy brought is trusted for
nothing but what the second finds unchanged. The target belongs to us alone.

Paths in the sandbox may be longer than PATH_MAX, and deeper than the stack and the number of descriptors: nothing is
named by its path, and only the innermost directories are held open.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from ... import removal
from ..base import RuntimeFailure
from .copied_tree import CopyLimits, Folder, Level, Mapped, Seen, let_go
from .file_copying import copy_attributes, copy_content, read_attributes, write_attributes

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["TreeCopy"]

MAX_DEPTH: Final = 4096
"""Directories in directories."""
OPEN_LEVELS: Final = 32
"""Directories that are held open in the source, and as many in the target."""
MARGIN_NS: Final = 20_000_000
"""A change within this time before a copy began may carry the same timestamp as one after it."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FATAL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS)
"""What a copy of a running sandbox cannot pass over: it says something of us."""


class _MovedError(OSError):
    """A directory is not where it was, so the rest of what it was in cannot be found from it."""


class TreeCopy:
    """One tree in the making.

    `offset`: what is taken from the ids of files, so that they are those that a layer has. `excluded`: files
    in directories of the top, `directory/name`, that are left out.
    """

    def __init__(self, target: str, *, offset: int, limits: CopyLimits, excluded: Collection[str] = ()) -> None:
        self._target = target
        self._gone = f"{target}.gone"
        self._moved = 0
        self._offset = offset
        self._limits = limits
        self._excluded = frozenset(tuple(path.split("/")) for path in excluded)
        self._root: Folder | None = None
        self._before: Folder | None = None
        self._links: dict[tuple[int, int], tuple[Folder, str]] = {}
        self._mapped = Mapped()
        self._frozen = False
        self._deadline: float | None = None
        self._given_up = False
        self.entries: int = 0
        self.size_bytes: int = 0
        self.copied: int = 0
        """Files that the last pass had to copy."""

    def give_up(self) -> None:
        """Make a pass that is under way in another thread end soon, with a RuntimeFailure."""
        self._given_up = True

    def copy(
        self,
        sources: Collection[tuple[str, str]],
        *,
        frozen: bool,
        mapped: Mapped | None = None,
        deadline: float | None = None,
    ) -> None:
        """Bring the target up to date. `sources` are directories and where they go to, `""` for the target itself.

        `frozen`: nothing changes any more, so what cannot be read now is an error. `mapped`: what may have changed
        without a trace. `deadline`: when to give up, on the monotonic clock.

        Blocks. Raises RuntimeFailure for what is too much or takes too long; OSError.
        """
        self._frozen, self._mapped, self._deadline = frozen, mapped or Mapped(), deadline
        self._links.clear()
        self.entries = self.size_bytes = self.copied = 0
        self._before, self._root = self._root, Folder("", None, os.stat(self._target))
        for source, place in sources:
            try:
                self._copy_source(source, place)
            except _MovedError:
                if frozen:
                    raise

    def finish(self) -> None:
        """Take away what is gone, and give the directories their owners, modes and times. Blocks. Raises OSError."""
        assert self._root is not None
        levels = [self._settle(self._root, os.open(self._target, _DIRECTORY))]
        while levels:
            level = levels[-1]
            if level.names:
                folder = level.folder.folders[level.names.pop()]
                levels.append(self._settle(folder, os.open(folder.name, _DIRECTORY, dir_fd=level.there)))
                if len(levels) > OPEN_LEVELS:
                    let_go(levels[-OPEN_LEVELS - 1])
                continue
            levels.pop()
            if levels and levels[-1].there == -1:
                levels[-1].there = os.open("..", _DIRECTORY, dir_fd=level.there)
            self._dress(level.folder, level.there)
            let_go(level)
        removal.remove_tree(self._gone)

    def _settle(self, folder: Folder, there: int) -> Level:
        for name in os.listdir(there):
            if name not in folder.files and name not in folder.folders:
                self._take_away(there, name)
        return Level(folder, None, -1, there, list(folder.folders), (0, 0))

    def _dress(self, folder: Folder, there: int) -> None:
        status = folder.status
        if self._offset:
            os.fchown(there, *self._ids(status))
        write_attributes(there, folder.attributes)  # While the mode still lets us.
        os.fchmod(there, stat.S_IMODE(status.st_mode))
        os.utime(there, ns=(status.st_atime_ns, status.st_mtime_ns))

    # One pass.

    def _copy_source(self, source: str, place: str) -> None:
        here = os.open(source, _DIRECTORY)
        folder, before = self._root, self._before
        assert folder is not None
        there = -1
        try:
            if place and not os.listdir(here):
                os.close(here)
                return
            there = os.open(self._target, _DIRECTORY)
            if place:
                self._make_room(there, place, directory=True)
                inner = os.open(place, _DIRECTORY, dir_fd=there)
                os.close(there)
                there = inner
                folder = folder.folders.setdefault(place, Folder(place, folder, os.fstat(here)))
                before = before.folders.get(place) if before is not None else None
            level = self._level(folder, before, here, there)
        except BaseException:
            for descriptor in (here, there):
                if descriptor != -1:
                    os.close(descriptor)
            raise
        self._walk(level, top=not place)

    def _level(self, folder: Folder, before: Folder | None, here: int, there: int) -> Level:
        status = folder.status = os.fstat(here)
        folder.attributes = read_attributes(here, self._offset)
        names = sorted(os.listdir(here), reverse=True)
        return Level(folder, before, here, there, names, (status.st_dev, status.st_ino))

    def _walk(self, first: Level, *, top: bool) -> None:
        levels = [first]
        try:
            while levels:
                level = levels[-1]
                if not level.names:
                    self._leave(levels)
                    continue
                name = level.names.pop()
                if top and len(levels) == 2 and (level.folder.name, name) in self._excluded:
                    continue
                try:
                    inner = self._entry(level, name, depth=len(levels))
                except OSError as error:
                    if self._frozen or error.errno in _FATAL:
                        raise
                    continue  # It has gone, or is being changed; a later pass finds it again.
                if inner is not None:
                    levels.append(inner)
                    self._hold_few(levels)
        finally:
            for level in levels:
                let_go(level)

    def _hold_few(self, levels: list[Level]) -> None:
        """Let go of what is far above, unless its mode must be given back."""
        if len(levels) > OPEN_LEVELS and levels[-OPEN_LEVELS - 1].restore is None:
            let_go(levels[-OPEN_LEVELS - 1])
        if sum(level.restore is not None for level in levels) > OPEN_LEVELS:
            raise _too_large(f"more than {OPEN_LEVELS} directories that may not be read are in one another")

    def _leave(self, levels: list[Level]) -> None:
        """Go back to the directory above, by way of `..` if it is not held; a sandbox may have moved it meanwhile."""
        level = levels[-1]
        if len(levels) > 1 and levels[-2].here == -1:
            above = levels[-2]
            above.there = os.open("..", _DIRECTORY, dir_fd=level.there)
            try:
                above.here = os.open("..", _DIRECTORY, dir_fd=level.here)
            except OSError as error:
                raise _MovedError(error.errno, "a directory was removed while it was copied") from error
            status = os.fstat(above.here)
            if (status.st_dev, status.st_ino) != above.identity:
                raise _MovedError(errno.ESTALE, "a directory was moved while it was copied")
        levels.pop()
        let_go(level)

    def _checkpoint(self) -> None:
        if self._given_up:
            raise RuntimeFailure("the capture was given up", kind="Runtime")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise RuntimeFailure("the capture took longer than the sandbox may be stopped; try again", kind="Runtime")

    def _entry(self, level: Level, name: str, *, depth: int) -> Level | None:
        """Copy one thing; for a directory, return what is to be walked next."""
        self._checkpoint()
        status = os.stat(name, dir_fd=level.here, follow_symlinks=False)
        self.entries += 1
        if self.entries > self._limits.max_entries:
            raise _too_large(f"the sandbox has changed more than {self._limits.max_entries:,} files")
        if stat.S_ISDIR(status.st_mode):
            if depth > MAX_DEPTH:
                raise _too_large(f"directories are nested more than {MAX_DEPTH} deep")
            return self._enter(level, name, status)
        if stat.S_ISREG(status.st_mode):
            self.size_bytes += status.st_size
            if self.size_bytes > self._limits.max_bytes:
                raise _too_large(f"the sandbox has written more than {self._limits.max_bytes:,} bytes")
        self._other(level, name, status)
        return None

    def _enter(self, level: Level, name: str, status: os.stat_result) -> Level:
        self._make_room(level.there, name, directory=True)
        here, restore = self._open_directory(level.here, name, status)
        there = -1
        try:
            there = os.open(name, _DIRECTORY, dir_fd=level.there)
            folder = Folder(name, level.folder, status)
            inner = self._level(folder, level.before and level.before.folders.get(name), here, there)
        except BaseException:
            let_go(Level(level.folder, None, here, there, [], (0, 0), restore))
            raise
        if restore is not None:
            folder.status, inner.restore = status, restore
        level.folder.folders[name] = folder
        return inner

    def _open_directory(self, here: int, name: str, status: os.stat_result) -> tuple[int, int | None]:
        """Open a directory; return the mode to give back to it, if it had to be opened up for its owner."""
        try:
            descriptor = os.open(name, _DIRECTORY, dir_fd=here)
        except PermissionError:
            if not self._frozen:
                raise
            return self._force(here, name, status, os.O_RDONLY | os.O_DIRECTORY), stat.S_IMODE(status.st_mode)
        if self._frozen and not os.access(f"/proc/self/fd/{descriptor}", os.X_OK):
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) | 0o700)
            return descriptor, stat.S_IMODE(status.st_mode)
        return descriptor, None

    def _force(self, here: int, name: str, status: os.stat_result, flags: int) -> int:
        """Open for reading what its mode forbids even to its owner, an ordinary user, by changing the mode.

        By way of a handle, so that it cannot be something else by then: a link to a file of the host's.
        """
        handle = os.open(name, _HANDLE, dir_fd=here)
        try:
            found = os.fstat(handle)
            if (found.st_dev, found.st_ino, found.st_mode) != (status.st_dev, status.st_ino, status.st_mode):
                raise _MovedError(errno.ESTALE, f"{name!r} was changed while it was copied")
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IMODE(status.st_mode) | 0o700)
            return os.open(f"/proc/self/fd/{handle}", flags | os.O_CLOEXEC)
        finally:
            os.close(handle)

    def _other(self, level: Level, name: str, status: os.stat_result) -> None:
        identity = (status.st_dev, status.st_ino)
        first = self._links.get(identity) if status.st_nlink > 1 else None
        known = level.before.files.get(name) if level.before is not None else None
        if known is not None and self._is_current(known, name, status):
            if first is None or first[0].files[first[1]].made == known.made:
                level.folder.files[name] = known
                if status.st_nlink > 1:
                    self._links.setdefault(identity, (level.folder, name))
                return
        began = time.time_ns()
        self._make_room(level.there, name, directory=False)
        if first is not None:
            self._link(first, level.there, name)
        elif not self._make(level.here, level.there, name, status):
            return
        made = os.stat(name, dir_fd=level.there, follow_symlinks=False).st_ino
        self.copied += 1
        level.folder.files[name] = Seen(status.st_ino, status.st_ctime_ns, began, status.st_size, made)
        if status.st_nlink > 1:
            self._links.setdefault(identity, (level.folder, name))

    def _is_current(self, known: Seen, name: str, status: os.stat_result) -> bool:
        return (
            known.inode == status.st_ino
            and known.changed == status.st_ctime_ns
            and known.size == status.st_size
            and status.st_ctime_ns < known.copied - MARGIN_NS
            and status.st_ino not in self._mapped.inodes
            and name not in self._mapped.names
        )

    def _link(self, first: tuple[Folder, str], there: int, name: str) -> None:
        """Give a file that is in the target already another name."""
        folder, original = first
        at = os.open(self._target, _DIRECTORY)
        try:
            for step in folder.way():
                inner = os.open(step, _DIRECTORY, dir_fd=at)
                os.close(at)
                at = inner
            os.link(original, name, src_dir_fd=at, dst_dir_fd=there, follow_symlinks=False)
        finally:
            os.close(at)

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
        if self._offset:
            os.chown(name, *self._ids(status), dir_fd=there, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(name, stat.S_IMODE(mode), dir_fd=there)  # It is ours, and no link; the umask had its say.
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)
        return True

    def _file(self, here: int, there: int, name: str, status: os.stat_result) -> None:
        restore = None
        try:
            source = os.open(name, _FILE, dir_fd=here)
        except PermissionError:
            if not self._frozen:
                raise
            source, restore = self._force(here, name, status, os.O_RDONLY), stat.S_IMODE(status.st_mode)
        try:
            found = os.fstat(source)
            if not stat.S_ISREG(found.st_mode):
                raise _MovedError(errno.ESTALE, f"{name!r} was changed while it was copied")
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
            try:
                copy_content(source, target, found.st_size, self._checkpoint)
                if self._offset:
                    os.fchown(target, *self._ids(found))
                copy_attributes(source, target, self._offset)  # While the mode still lets us.
                os.fchmod(target, stat.S_IMODE(found.st_mode if restore is None else restore))
                os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
            finally:
                os.close(target)
        finally:
            if restore is not None:
                os.fchmod(source, restore)
            os.close(source)

    def _ids(self, status: os.stat_result) -> tuple[int, int]:
        """A whiteout and what the runtime has made belong to the host's root."""
        return max(status.st_uid - self._offset, 0), max(status.st_gid - self._offset, 0)

    # The target.

    def _make_room(self, there: int, name: str, *, directory: bool) -> None:
        """Take away what an earlier pass has put in the place, unless both are directories."""
        try:
            present = os.stat(name, dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            present = None
        if present is not None:
            if directory and stat.S_ISDIR(present.st_mode):
                return
            self._take_away(there, name)
        if directory:
            os.mkdir(name, 0o700, dir_fd=there)

    def _take_away(self, there: int, name: str) -> None:
        """Remove a file; put a directory aside, since it may be large."""
        if not stat.S_ISDIR(os.stat(name, dir_fd=there, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=there)
            return
        self._moved += 1
        os.makedirs(self._gone, mode=0o700, exist_ok=True)
        os.rename(name, f"{self._gone}/{self._moved}", src_dir_fd=there)


def _too_large(message: str) -> RuntimeFailure:
    return RuntimeFailure(message, kind="SnapshotTooLarge")
