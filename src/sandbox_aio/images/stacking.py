"""An image's layers on their way into the store, from the lowest up, wherever they come from."""

from __future__ import annotations

import asyncio
from typing import IO, TYPE_CHECKING

import attrs

from ..shielding import in_thread, shielded
from .compression import StoppableReader
from .errors import ImageError
from .known_blobs import KnownBlob, remember
from .layers import LayerInfo
from .pulled import PulledImage
from .unpack import Unpacked, UnpackLimits, unpack_layer

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from .layers import LayerStore
    from .manifest import ImageConfig

    Fetch = Callable[[], Awaitable[Callable[[], IO[bytes]]]]

__all__ = ["Stacking"]


class Stacking:
    """One image. `image` is what errors call it; `limits` are the whole image's.

    Every layer's id is put into `pins` before anybody could take the layer away.
    """

    def __init__(self, image: str, store: LayerStore, limits: UnpackLimits, pins: set[str]) -> None:
        self._image = image
        self._store = store
        self._limits = limits
        self._pins = pins
        self._ids: list[str] = []
        self._size = 0
        self._notes: list[str] = []

    async def add(self, chain: str, diff_id: str, name: str, fetch: Fetch, blob: KnownBlob | None = None) -> None:
        """Have the next layer in the store. `name` is what errors call it.

        If it is not there, `fetch` waits for its archive and returns what opens it, in a thread. `blob` is what is to
        be remembered of the archive.
        Raises ImageError for a layer that is not what `diff_id` says, and for an image that is too large.
        Cancellation: stops the unpacking, and waits for its end, so that the draft can be removed.
        """
        below = [self._store.tree(id) for id in self._ids]

        async def make(draft: Path) -> LayerInfo:
            unpacked = await self._unpack(await fetch(), draft, below, name)
            if unpacked.diff_id != diff_id:
                raise ImageError(f"{name} unpacks to {unpacked.diff_id}, and should to {diff_id}", kind="ImageUnpack")
            if blob is not None:
                await shielded(asyncio.to_thread(remember, draft, blob))
            return LayerInfo(
                chain_id=chain,
                diff_id=diff_id,
                size_bytes=unpacked.size_bytes,
                entries=unpacked.entries,
                notes=unpacked.notes,
            )

        id = await self._store.ensure(chain, make, self._pins)
        info = self._store.describe(id)
        self._size += info.size_bytes
        self._notes += info.notes
        self.require_room(self._size)
        self._ids.insert(0, id)

    async def _unpack(self, opened: Callable[[], IO[bytes]], draft: Path, below: Sequence[Path], name: str) -> Unpacked:
        room = attrs.evolve(self._limits, max_bytes=self._limits.max_bytes - self._size)

        def work(stop: threading.Event) -> Unpacked:
            with opened() as file:
                source = StoppableReader(file, stop)
                return unpack_layer(source, draft / "tree", below, limits=room, owner=self._store.owner, name=name)

        return await in_thread(work)

    def require_room(self, size: int) -> None:
        """Raise ImageError if an image of so many bytes is over the limit."""
        if size > self._limits.max_bytes:
            raise ImageError(
                f"{self._image} holds more than the {self._limits.max_bytes:,} bytes that the snapshot may: raise "
                "fs_capacity_bytes",
                kind="ImageTooLarge",
            )

    def image(self, digest: str, config: ImageConfig) -> PulledImage:
        """What has been added."""
        return PulledImage(
            reference=self._image,
            digest=digest,
            config=config,
            layers=tuple(self._ids),
            size_bytes=self._size,
            notes=tuple(self._notes),
        )
