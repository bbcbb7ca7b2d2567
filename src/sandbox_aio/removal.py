"""Removing a directory tree that a stranger has filled.

The tree may be deeper than the recursion limit, than PATH_MAX and than the number of descriptors, and may hold
directories that their owner cannot enter (the overlay's own `work/work` has mode 000). So it is never walked: each
directory that is not empty is moved up, beside the first one, and its turn comes. Symbolic links are removed, not
followed.
"""

from __future__ import annotations

import errno
import os
from collections import deque

__all__ = ["remove_tree"]


def remove_tree(path: str) -> None:
    """Remove `path` and everything below it. Nothing may run in it any more.

    Raises OSError when something cannot be removed. It is no error when `path` does not exist. A kill in the middle
    leaves directories named `path` with a number behind it, such as `path.1`, each to be removed by a call of its own.
    """
    parent, first = os.path.split(os.path.abspath(path))
    try:
        parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove(parent_fd, first)
    finally:
        os.close(parent_fd)


def _remove(parent_fd: int, first: str) -> None:
    waiting = deque([first])
    moved = 0
    while waiting:
        name = waiting.popleft()
        try:
            directory = _open_directory(parent_fd, name)
        except FileNotFoundError:
            continue
        try:
            for entry in os.listdir(directory):
                if _remove_one(directory, entry):
                    continue
                os.chmod(entry, 0o700, dir_fd=directory)  # To move a directory is to write its `..`.
                while True:
                    moved += 1
                    place = f"{first}.{moved}"
                    try:
                        os.rename(entry, place, src_dir_fd=directory, dst_dir_fd=parent_fd)
                    except OSError as error:
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                            raise
                        continue  # A removal that was killed has left something there.
                    break
                waiting.append(place)
        finally:
            os.close(directory)
        os.rmdir(name, dir_fd=parent_fd)


def _open_directory(parent_fd: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent_fd)
        return os.open(name, flags, dir_fd=parent_fd)


def _remove_one(directory: int, entry: str) -> bool:
    """Remove a file or an empty directory; tell whether that was enough. Makes the directory writable if it has to."""
    try:
        os.unlink(entry, dir_fd=directory)
    except IsADirectoryError:
        pass
    except PermissionError:
        os.fchmod(directory, 0o700)
        try:
            os.unlink(entry, dir_fd=directory)
        except IsADirectoryError:
            pass
        else:
            return True
    else:
        return True
    try:
        os.rmdir(entry, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
