"""Capturing a sandbox: what it has changed, as a layer over what it was made from."""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import TYPE_CHECKING, Any, Final

from ...shielding import shielded
from ..base import Captured, RuntimeFailure
from .copied_tree import CopyLimits, Mapped
from .copying import TreeCopy
from .freezing import descendants
from .sandbox_process import FREEZE_LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .plan import Overlay
    from .zygote_client import ZygoteClient

__all__ = ["EXCLUDED", "capture"]

EXCLUDED: Final = ("etc/hostname", "etc/hosts")
"""What every sandbox has of its own."""
MAX_EARLY_PASSES: Final = 3
"""Copies that are made while the sandbox runs, as long as each has much less to do than the one before."""
FEW: Final = 50
"""Files that may be copied while the sandbox stands still."""
_MAPPED: Final = re.compile(rb"(?:\S+ +){4}(\d+) +(?:\(unreachable\))?/(?:.*/)?([^/]*?)(?: \(deleted\))?")


async def capture(
    directory: Path,
    overlays: Sequence[Overlay],
    tree: Path,
    *,
    offset: int,
    client: ZygoteClient | None,
    id: str,
    limits: CopyLimits | None = None,
) -> Captured:
    """Copy what a sandbox has changed into `tree`. `client`: the zygote, if the sandbox runs. `offset`: how far the
    sandbox's ids on the host are from those of a layer.

    Raises RuntimeFailure. Cancellation: soon, and the sandbox runs on.
    """
    copy = TreeCopy(str(tree), offset=offset, limits=limits or CopyLimits(), excluded=EXCLUDED)
    sources = [(str(directory / overlay.upper), overlay.target) for overlay in overlays]
    work = asyncio.ensure_future(_capture(copy, sources, client, id))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        copy.give_up()
        await shielded(asyncio.wait([work]))
        if not work.cancelled():
            work.exception()  # Of a capture that nobody waits for.
        raise
    except OSError as error:
        raise RuntimeFailure(f"the sandbox cannot be captured: {error}", kind="Runtime") from error


async def _capture(
    copy: TreeCopy, sources: Sequence[tuple[str, str]], client: ZygoteClient | None, id: str
) -> Captured:
    frozen = 0.0
    if client is None:
        await asyncio.to_thread(copy.copy, sources, frozen=True)
    else:
        answer = await client.request("init", id=id)
        mapped = await asyncio.to_thread(_copy_early, copy, sources, _init(answer))
        frozen = await _copy_at_rest(copy, sources, mapped, client, id)
    await asyncio.to_thread(copy.finish)
    return Captured(size_bytes=copy.size_bytes, entries=copy.entries, frozen_seconds=frozen)


def _init(answer: dict[str, Any]) -> int:
    if not answer["ok"]:
        raise RuntimeFailure(f"the sandbox cannot be stopped for its capture: {answer['error']}", kind="Runtime")
    return int(answer["init"])


def _copy_early(copy: TreeCopy, sources: Sequence[tuple[str, str]], init: int) -> Mapped:
    """Copy what there is; return what has been mapped, by whomever and however short, and cannot be trusted then."""
    last: int | None = None
    mapped = _shared_maps(init)
    for _ in range(MAX_EARLY_PASSES):
        copy.copy(sources, frozen=False, mapped=mapped)
        mapped |= _shared_maps(init)
        if copy.copied <= FEW or (last is not None and copy.copied > last // 2):
            break
        last = copy.copied
    return mapped


async def _copy_at_rest(
    copy: TreeCopy, sources: Sequence[tuple[str, str]], mapped: Mapped, client: ZygoteClient, id: str
) -> float:
    """Copy what is left to copy while nothing in the sandbox moves; return for how many seconds that was.

    The zygote lets it go on by itself when this process is gone, or takes too long.
    """
    start = time.monotonic()
    init = _init(await client.request("freeze", id=id))

    def work() -> None:
        deadline = start + FREEZE_LIMIT_S
        copy.copy(sources, frozen=True, mapped=mapped | _shared_maps(init), deadline=deadline)

    try:
        await asyncio.to_thread(work)
    finally:
        thawed = await client.request("thaw", id=id)
    if not thawed["thawed"]:
        raise RuntimeFailure("the capture took longer than the sandbox may be stopped; try again", kind="Runtime")
    return time.monotonic() - start


def _shared_maps(init: int) -> Mapped:
    """The files that processes of a sandbox write to by way of memory."""
    names: set[str] = set()
    inodes: set[int] = set()
    for pid, _ in descendants(init):
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                lines = file.readlines()
        except OSError:
            continue  # Only a process that shares our memory's owner hides it, and the daemon maps no file so.
        for line in lines:
            if line[:60].split(b" ", 2)[1:2] == [b"rw-s"] and (match := _MAPPED.fullmatch(line.rstrip(b"\n"))):
                inodes.add(int(match[1]))
                names.add(os.fsdecode(match[2].replace(rb"\012", b"\n")))
    return Mapped(names=frozenset(names), inodes=frozenset(inodes))
