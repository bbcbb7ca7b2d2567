"""Which host user ids a sandbox's own ids are.

As root, every sandbox has a range of 65,536 host uids and gids of its own, from a region that no account uses. An
ordinary user has one uid to give: the sandbox's root is that user, and there is no other id inside.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = ["IdMap", "IdSupply", "region_is_available"]

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

    @classmethod
    def of_this_user(cls) -> IdMap:
        """Return the map of an ordinary user: root inside is the user, and nobody else exists."""
        return cls(uid=os.geteuid(), gid=os.getegid(), count=1)

    def write(self, process: str) -> None:
        """Give the user namespace of /proc/`process` this map.

        A process without CAP_SETGID in the parent namespace may write a gid map only after it gave up setgroups(2) in
        it.
        """
        if self.count == 1:
            _write(f"/proc/{process}/setgroups", "deny")
        _write(f"/proc/{process}/uid_map", f"0 {self.uid} {self.count}")
        _write(f"/proc/{process}/gid_map", f"0 {self.gid} {self.count}")


class IdSupply:
    """Gives every sandbox its ids: a range of its own each, or, to an ordinary user's, that user's only id."""

    def __init__(self, seed: int) -> None:
        """`seed`: servers with different ones begin at different places of the region."""
        self._slot = seed % SLOTS
        self._shared = IdMap.of_this_user() if os.geteuid() != 0 else None

    @property
    def next(self) -> IdMap:
        """What the next sandbox will get, unless that is taken by then."""
        return self._shared or IdMap.of_slot(self._slot)

    def take(self, taken: Container[IdMap]) -> IdMap:
        """Return ids that are not among `taken`. Raises LookupError when there are none left."""
        if self._shared is not None:
            return self._shared
        for _ in range(SLOTS):
            ids = IdMap.of_slot(self._slot)
            self._slot = (self._slot + 1) % SLOTS
            if ids not in taken:
                return ids
        raise LookupError(f"there are {SLOTS} sandboxes, and no more user ids for another")

    def share(self) -> IdMap:
        """From now on, give every sandbox the same range; return it."""
        self._shared = self.next
        return self._shared


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
