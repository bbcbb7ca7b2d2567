"""What is known of a tree while it is copied: what each pass has found, and where it is."""

from __future__ import annotations

import os

import attrs

__all__ = ["CopyLimits", "Folder", "Level", "Mapped", "Seen", "let_go"]


@attrs.frozen(kw_only=True)
class CopyLimits:
    """How much may be captured."""

    max_bytes: int = 1 << 40
    max_entries: int = 5_000_000


@attrs.frozen(kw_only=True)
class Mapped:
    """Files that programs write to by way of memory, which leaves no trace on the file at once.

    They are known by their names or their inodes: a file with several names is mapped by one, and the overlay may show
    an inode of its own. That another file of the same name is copied too does no harm.
    """

    names: frozenset[str] = frozenset()
    inodes: frozenset[int] = frozenset()

    def __or__(self, other: Mapped) -> Mapped:
        return Mapped(names=self.names | other.names, inodes=self.inodes | other.inodes)


@attrs.frozen
class Seen:
    """What was copied, and of what."""

    inode: int
    changed: int
    """Its ctime, in nanoseconds."""
    copied: int
    """When the copy began, on the same clock."""
    size: int
    made: int
    """The inode of the copy."""


@attrs.define(eq=False)
class Folder:
    """A directory of the target, as one pass has found it in the source."""

    name: str
    parent: Folder | None = attrs.field(repr=False)
    status: os.stat_result
    attributes: dict[str, bytes] = attrs.field(factory=dict)
    files: dict[str, Seen] = attrs.field(factory=dict, repr=False)
    folders: dict[str, Folder] = attrs.field(factory=dict, repr=False)

    def way(self) -> list[str]:
        """The names that lead here from the top."""
        names = []
        folder = self
        while folder.parent is not None:
            names.append(folder.name)
            folder = folder.parent
        return names[::-1]


@attrs.define(eq=False)
class Level:
    """A directory on the way from the top to where the copy is. The descriptors are -1 while they are not held."""

    folder: Folder
    before: Folder | None
    """The same directory in the pass before."""
    here: int
    there: int
    names: list[str]
    """What is still to be copied, last first."""
    identity: tuple[int, int]
    restore: int | None = None
    """The mode to give back to a directory that had to be opened up."""


def let_go(level: Level) -> None:
    """Close what is held of a directory, and give it its mode back."""
    if level.here != -1:
        if level.restore is not None:
            os.fchmod(level.here, level.restore)
        os.close(level.here)
    if level.there != -1:
        os.close(level.there)
    level.here = level.there = -1
