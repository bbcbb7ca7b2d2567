"""Which host user ids a sandbox's own ids are.

As root, every sandbox has a range of 65,536 host uids and gids of its own, from a region that no account uses. An ordinary
user has one uid to give: the sandbox's root is that user, and there is no other id inside.
"""

from __future__ import annotations

import os
from typing import Final

import attrs

__all__ = ["IdMap", "region_is_available"]

REGION_START: Final = 2_000_000_000
RANGE: Final = 65_536
SLOTS: Final = 32_768
"""The region ends at 4,147,483,648, below the largest uid that the kernel takes."""


@attrs.frozen(kw_only=True)
class IdMap:
    """The host ids that 0, 1, ... are inside a sandbox, the same for users and groups."""

    uid: int
    gid: int
    count: int

    @classmethod
    def of_slot(cls, slot: int) -> IdMap:
        """Return the range of the sandbox in `slot`, 0 <= slot < SLOTS."""
        start = REGION_START + slot * RANGE
        return cls(uid=start, gid=start, count=RANGE)

    @property
    def slot(self) -> int:
        """Return the slot of a range."""
        return (self.uid - REGION_START) // RANGE

    @classmethod
    def of_this_user(cls) -> IdMap:
        """Return the map of an ordinary user: root inside is the user, and nobody else exists."""
        return cls(uid=os.geteuid(), gid=os.getegid(), count=1)

    def write(self, process: str) -> None:
        """Give the user namespace of /proc/`process` this map.

        A process without CAP_SETGID in the parent namespace may write a gid map only after it gave up setgroups(2) in it.
        """
        if self.count == 1:
            _write(f"/proc/{process}/setgroups", "deny")
        _write(f"/proc/{process}/uid_map", f"0 {self.uid} {self.count}")
        _write(f"/proc/{process}/gid_map", f"0 {self.gid} {self.count}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def region_is_available() -> bool:
    """Tell whether this process's own user namespace has the whole region; a nested one usually has not."""
    end = REGION_START + SLOTS * RANGE
    for kind in ("uid", "gid"):
        with open(f"/proc/self/{kind}_map") as lines:
            extents = [tuple(map(int, line.split())) for line in lines]
        if not any(first <= REGION_START and end <= first + count for first, _, count in extents):
            return False
    return True
