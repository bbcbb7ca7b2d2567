"""Layers on disk: each unpacked once, shared by all that are made from it, removed when nothing is.

    <layers>/17/tree/        a layer's files, in the form of an overlayfs upper directory
    <layers>/17/layer.json   what is known of it
    <layers>/draft-*/        one that is being made
    <layers>/trash-*/        one that is being removed

A layer appears and disappears by a rename, so a server that is killed at any instant leaves no half of one. Its name is
a number, so short that hundreds of names fit into the options of a mount, and is not given again while the directory
remembers a higher one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import attrs

from ..removal import remove_tree
from ..shielding import shielded
from .errors import ImageError

__all__ = ["LayerInfo", "LayerStore", "MakeLayer"]

logger: logging.Logger = logging.getLogger("sandbox_aio.images")

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")


@attrs.frozen(kw_only=True)
class LayerInfo:
    """What is known of a layer."""

    size_bytes: int
    """What its files hold."""
    entries: int
    """Files, directories and all else in it."""
    chain_id: str | None = None
    """The digest of this layer and all below it, as an image names them; None for what was captured."""
    diff_id: str | None = None
    """The digest of its archive, not compressed; None for what was never one."""
    notes: tuple[str, ...] = ()
    """What could not be unpacked as it is, in sentences."""


MakeLayer = Callable[[Path], Awaitable[LayerInfo]]
"""Fills a draft, a directory in which there is an empty `tree`, and says what it is."""


class LayerStore:
    """The layers below one directory. One process at a time uses it, in one event loop.

    `owner`: the host id that id 0 of a layer has on disk; see `Runtime.layer_owner`.
    """

    def __init__(self, directory: Path, owner: int = 0) -> None:
        self.directory: Path = directory
        self.owner: int = owner
        self._layers: dict[str, LayerInfo] = {}
        self._chains: dict[str, str] = {}
        self._making: dict[str, asyncio.Task[str]] = {}
        self._removing: set[asyncio.Task[None]] = set()
        self._last = 0

    def open(self) -> None:
        """Learn what there is, and remove what a killed server left half made or half removed. Blocks.

        Raises ImageError for a directory that cannot hold files of which the names differ in their case only.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._require_case()
        for path in sorted(self.directory.iterdir()):
            if _NUMBER.fullmatch(path.name) and (info := _read(path)) is not None:
                self._add(path.name, info)
            elif path.is_dir() and not path.is_symlink():
                remove_tree(str(path))
            elif path.name != "last":
                path.unlink()
        numbers = [int(id) for id in self._layers]
        try:
            numbers.append(int((self.directory / "last").read_text()))
        except (OSError, ValueError):
            pass
        self._last = max(numbers, default=0)

    async def aclose(self) -> None:
        """Wait for what is being removed."""
        while self._removing:
            await asyncio.wait(self._removing)

    def _require_case(self) -> None:
        probe = self.directory / "draft-case"
        remove_tree(str(probe))
        probe.mkdir()
        try:
            if (self.directory / "DRAFT-CASE").exists():
                raise ImageError(
                    f"{self.directory} does not tell names apart by their case, as images do; use another --state-dir",
                    kind="ImageUnpack",
                )
        finally:
            probe.rmdir()

    # Looking.

    def ids(self) -> list[str]:
        """All layers."""
        return list(self._layers)

    def find(self, chain_id: str) -> str | None:
        """The layer of an image's chain, if it is there."""
        return self._chains.get(chain_id)

    def describe(self, id: str) -> LayerInfo:
        """What is known of a layer. Raises KeyError."""
        return self._layers[id]

    def tree(self, id: str) -> Path:
        """Where its files are."""
        return self.directory / id / "tree"

    # Making.

    async def ensure(self, chain_id: str, make: MakeLayer, pins: set[str]) -> str:
        """Return the layer of that chain; have it made if it is not there. Two that ask at once get the same one.

        Its id is put into `pins`, of which the caller sees to it that they are not discarded, before anything else can
        happen to the layer.
        Cancellation: the making goes on while somebody else waits for it, and else is cancelled and leaves nothing.
        """
        while True:
            if (known := self._chains.get(chain_id)) is not None:
                pins.add(known)
                return known
            task = self._making.get(chain_id)
            if task is None:
                task = asyncio.create_task(self.add(make, pins))
                self._making[chain_id] = task
                task.add_done_callback(lambda _: self._making.pop(chain_id, None))
                try:
                    return await task
                except asyncio.CancelledError:
                    task.cancel()
                    await shielded(asyncio.wait([task]))  # Whoever cancels twice waits all the same.
                    raise
            await asyncio.wait([task])  # If it fails, or its maker is cancelled, this caller makes it instead.

    async def add(self, make: MakeLayer, pins: set[str]) -> str:
        """Have a layer made, put its id into `pins`, and return it.

        Cancellation: nothing is left of it, unless it was whole already: then the store has it.
        """
        draft = self.directory / f"draft-{secrets.token_hex(8)}"
        try:
            await asyncio.to_thread(self._begin, draft)
            info = await make(draft)
            self._last += 1
            id = str(self._last)
            await shielded(self._finish(draft, info, id, pins))
            return id
        except BaseException:
            await shielded(asyncio.to_thread(remove_tree, str(draft)))
            raise

    async def _finish(self, draft: Path, info: LayerInfo, id: str, pins: set[str]) -> None:
        """Publish a layer, and know of it: one must not happen without the other."""
        await asyncio.to_thread(self._publish, draft, info, id)
        pins.add(id)
        self._add(id, info)

    def _begin(self, draft: Path) -> None:
        (draft / "tree").mkdir(parents=True)
        for path in (draft, draft / "tree"):
            path.chmod(0o755)
            if self.owner:
                os.chown(path, self.owner, self.owner)

    def _publish(self, draft: Path, info: LayerInfo, id: str) -> None:
        (draft / "layer.json").write_text(json.dumps(attrs.asdict(info)))
        last = self.directory / f"draft-last-{id}"
        last.write_text(str(self._last))
        last.rename(self.directory / "last")
        draft.rename(self.directory / id)

    def _add(self, id: str, info: LayerInfo) -> None:
        self._layers[id] = info
        if info.chain_id is not None:
            self._chains[info.chain_id] = id

    # Removing.

    def discard(self, id: str) -> None:
        """Forget a layer at once, and remove it in the background. Nothing may be made from it any more."""
        info = self._layers.pop(id)
        if info.chain_id is not None and self._chains.get(info.chain_id) == id:
            del self._chains[info.chain_id]
        trash = self.directory / f"trash-{id}-{secrets.token_hex(4)}"
        (self.directory / id).rename(trash)
        task = asyncio.create_task(self._remove(trash))
        self._removing.add(task)
        task.add_done_callback(self._removing.discard)

    async def _remove(self, trash: Path) -> None:
        try:
            await asyncio.to_thread(remove_tree, str(trash))
        except OSError as error:
            logger.error("cannot remove a layer; the next start tries again: %s", error)


def _read(path: Path) -> LayerInfo | None:
    try:
        data = json.loads((path / "layer.json").read_text())
        return LayerInfo(**{**data, "notes": tuple(data["notes"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
