"""Capturing a sandbox: what it has changed, as a layer over what it was made from."""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import TYPE_CHECKING, Final

from ...shielding import shielded
from ..base import Captured, RuntimeFailure
from .copying import CopyLimits, TreeCopy
from .freezing import descendants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .idmap import IdMap
    from .plan import Overlay
    from .zygote_client import ZygoteClient

__all__ = ["EXCLUDED", "capture"]

EXCLUDED: Final = ("etc/hostname", "etc/hosts")
"""What every sandbox has of its own."""
MAX_EARLY_PASSES: Final = 3
"""Copies that are made while the sandbox runs, as long as each has much less to do than the one before."""
FEW: Final = 50
"""Files that may be copied while the sandbox stands still."""
_MAPPED: Final = re.compile(rb" (?:\(unreachable\))?(/.*?)(?: \(deleted\))?$")


async def capture(
    directory: Path,
    overlays: Sequence[Overlay],
    ids: IdMap,
    tree: Path,
    *,
    client: ZygoteClient | None,
    id: str,
    limits: CopyLimits | None = None,
) -> Captured:
    """Copy what a sandbox has changed into `tree`. `client`: the zygote, if the sandbox runs.

    Raises RuntimeFailure. Cancellation: the sandbox runs on.
    """
    offset = ids.uid if ids.count > 1 else 0
    copy = TreeCopy(str(tree), offset=offset, limits=limits or CopyLimits(), excluded=EXCLUDED)
    sources = [(str(directory / overlay.upper), overlay.target) for overlay in overlays]
    try:
        frozen = 0.0
        if client is None:
            await shielded(asyncio.to_thread(copy.copy, sources, frozen=True))
        else:
            await shielded(asyncio.to_thread(_copy_early, copy, sources))
            frozen = await _copy_at_rest(copy, sources, client, id)
        await shielded(asyncio.to_thread(copy.finish))
    except OSError as error:
        raise RuntimeFailure(f"the sandbox cannot be captured: {error}", kind="Runtime") from error
    return Captured(size_bytes=copy.size_bytes, entries=copy.entries, frozen_seconds=frozen)


def _copy_early(copy: TreeCopy, sources: Sequence[tuple[str, str]]) -> None:
    last: int | None = None
    for _ in range(MAX_EARLY_PASSES):
        copy.copy(sources, frozen=False)
        if copy.copied <= FEW or (last is not None and copy.copied > last // 2):
            return
        last = copy.copied


async def _copy_at_rest(copy: TreeCopy, sources: Sequence[tuple[str, str]], client: ZygoteClient, id: str) -> float:
    """Copy what is left to copy while nothing in the sandbox moves; return for how many seconds that was.

    The zygote lets it go on by itself when this process is gone, or takes too long.
    """
    answer = await client.request("freeze", id=id)
    if not answer["ok"]:
        raise RuntimeFailure(f"the sandbox cannot be stopped for its capture: {answer['error']}", kind="Runtime")
    start = time.monotonic()

    async def work() -> None:
        try:
            mapped = await asyncio.to_thread(_shared_maps, int(answer["init"]))
            await asyncio.to_thread(copy.copy, sources, frozen=True, mapped=mapped)
        finally:
            thawed = await client.request("thaw", id=id)
        if not thawed["thawed"]:
            raise RuntimeFailure("the capture took longer than the sandbox may be stopped; try again", kind="Runtime")

    await shielded(work())
    return time.monotonic() - start


def _shared_maps(init: int) -> frozenset[str]:
    """The files that processes write to by way of memory, which leaves no trace on the file at once."""
    found = set()
    for pid, _ in descendants(init):
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                lines = file.readlines()
        except OSError:
            continue  # Only a process that shares our memory's owner hides it, and the daemon maps no file so.
        for line in lines:
            if line[:60].split(b" ", 2)[1:2] == [b"rw-s"] and (match := _MAPPED.search(line.rstrip(b"\n"))):
                found.add(os.fsdecode(match[1]))
    return frozenset(found)
