"""The directories of an image while a layer is laid over those below it.

Paths in a layer are those of the whole image: they may lead through directories, and through symbolic links, that only
a lower layer has. `MergedTree` follows them as a program in the image would, inside its root, and gives every
directory its place in the new layer's own tree. It looks at the lower trees, which are ours and do not change, and
remembers what is in the new one, so nothing is ever followed by the kernel.
"""

from __future__ import annotations

import enum
import os
import stat
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["OPAQUE", "Directory", "Kind", "MergedTree", "is_whiteout"]

OPAQUE: Final = "user.overlay.opaque"
"""The extended attribute, with the value `y`, of a directory that hides what is below it."""
MAX_LINKS: Final = 40
"""Symbolic links on the way of one path."""
MAX_WAYS: Final = 10_000
"""Paths of which it is remembered where they lead."""
MAX_MODEL: Final = 512 << 20
"""Bytes of memory for the directories of one layer: a path of a few kilobytes may name a thousand of them."""
_DIRECTORY_BYTES: Final = 1000
"""What one takes, beside its path."""


class Kind(enum.Enum):
    """What is in the new layer under a name."""

    DIRECTORY = enum.auto()
    LINK = enum.auto()
    OTHER = enum.auto()
    WHITEOUT = enum.auto()


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it is what overlayfs takes for a hole."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


@attrs.define(eq=False)
class Directory:
    """One directory of the image. `path` is where it is in the new layer, whether it is there yet or not."""

    path: str
    parent: Directory | None
    below: list[str]
    """Directories of lower layers that show through, topmost first."""
    own: bool = False
    """It is in the new layer."""
    opaque: bool = False
    entries: dict[str, Kind] = attrs.field(factory=dict)
    """What the new layer has in it."""
    hidden: set[str] = attrs.field(factory=set)
    """Names of which the new layer has removed what is below."""
    directories: dict[str, Directory] = attrs.field(factory=dict)

    def hide_below(self) -> None:
        """Let nothing of lower layers show through, here and in all directories in it."""
        waiting = [self]
        while waiting:
            directory = waiting.pop()
            directory.below = []
            waiting += directory.directories.values()


class MergedTree:
    """The image as it is while a layer is unpacked into `tree`. `on_make` is told of every directory that must be made
    in it, with the lower one that it is to look like, if there is one.
    """

    def __init__(self, tree: str, lowers: Sequence[str], on_make: Callable[[Directory, str | None], None]) -> None:
        self.root: Directory = Directory(tree, None, list(lowers), own=True)
        self._on_make = on_make
        self._ways: dict[str, Directory] = {}
        self._followed: set[str] = set()
        """Places in the new layer where a link of a lower one was followed."""
        self._model = 0

    def directory(self, way: str) -> Directory:
        """Follow a path, relative to the root, to the directory it leads to; what is missing on it is added.

        Raises ImageError when something on it is no directory, and for more than 40 links.
        """
        found = self._ways.get(way)
        if found is None:
            if len(self._ways) >= MAX_WAYS:
                self.forget_ways()
            found = self._ways[way] = self._follow(way)
        return found

    def add(self, parent: Directory, name: str, below: list[str]) -> Directory:
        """Know of a directory from now on. Raises ImageError when there are too many."""
        path = f"{parent.path}/{name}"
        self._model += len(path) + _DIRECTORY_BYTES
        if self._model > MAX_MODEL:
            raise ImageError("there are too many directories in it, or too deep ones", kind="ImageTooLarge")
        directory = parent.directories[name] = Directory(path, parent, below)
        return directory

    def forget_ways(self) -> None:
        """A directory or a link is not what it was."""
        self._ways.clear()
        self._followed.clear()

    def replaced(self, path: str) -> None:
        """Something that is no directory is in the new layer now. It may have taken the place of a lower link."""
        if path in self._followed:
            self.forget_ways()

    def _follow(self, way: str) -> Directory:
        here, rest, links = self.root, deque(way.split("/")), 0
        while rest:
            name = rest.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                here = here.parent or self.root
                continue
            child = self.child(here, name)
            if isinstance(child, Directory):
                here = child
                continue
            links += 1
            if links > MAX_LINKS:
                raise ImageError(f"the path {way!r} leads through too many symbolic links", kind="ImageUnpack")
            if child is None:
                raise ImageError(f"the path {way!r} leads through {name!r}, which is no directory", kind="ImageUnpack")
            if child.startswith("/"):
                here = self.root
            rest.extendleft(reversed(child.split("/")))
        return here

    def child(self, parent: Directory, name: str) -> Directory | str | None:
        """A directory, the target of a link, or None for anything else. What is missing becomes a directory."""
        if (known := parent.directories.get(name)) is not None:
            return known
        kind = parent.entries.get(name)
        if kind is Kind.LINK:
            return os.readlink(f"{parent.path}/{name}")
        if kind is Kind.OTHER:
            return None
        below = [] if name in parent.hidden else self.lower_directories(parent, name)
        if not below and kind is not Kind.WHITEOUT and (lower := self.lower(parent, name)) is not None:
            if not stat.S_ISLNK(os.lstat(lower).st_mode):
                return None
            self._followed.add(f"{parent.path}/{name}")
            return os.readlink(lower)
        return self.add(parent, name, below)

    def lower(self, parent: Directory, name: str) -> str | None:
        """Where a lower layer has what shows through under a name of `parent`; None if nothing does."""
        if name in parent.hidden:
            return None
        for folder in parent.below:
            path = f"{folder}/{name}"
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            return None if is_whiteout(status) else path
        return None

    def lower_directories(self, parent: Directory, name: str) -> list[str]:
        """The directories of lower layers that are merged under a name of `parent`, topmost first."""
        found: list[str] = []
        for folder in parent.below:
            path = f"{folder}/{name}"
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                break
            found.append(path)
            if _is_opaque(path):
                break
        return found

    def make(self, directory: Directory) -> None:
        """See to it that a directory, and all it is in, are in the new layer."""
        missing = []
        here: Directory | None = directory
        while here is not None and not here.own:
            missing.append(here)
            here = here.parent
        for one in reversed(missing):
            assert one.parent is not None
            name = one.path.rpartition("/")[2]
            if one.parent.entries.get(name) is Kind.WHITEOUT:
                os.unlink(one.path)
                one.opaque = True
            elif name in one.parent.hidden:  # The hole in its place was filled, and emptied again.
                one.opaque = True
            one.own = True
            one.parent.entries[name] = Kind.DIRECTORY
            self._on_make(one, one.below[0] if one.below else None)


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False
