"""What a pull needs, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox_aio.images.access import Credentials, RegistryAccess
from sandbox_aio.images.download import BlobStore
from sandbox_aio.images.layers import LayerStore
from sandbox_aio.images.pull import pull
from sandbox_aio.images.reference import ImageReference
from sandbox_aio.images.unpack import UnpackLimits
from tests.images.archives import listing

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox_aio.images.pulled import Progress, PulledImage

__all__ = ["Puller"]


class Puller:
    """A store and what goes with it."""

    def __init__(self, folder: Path) -> None:
        self.store = LayerStore(folder / "layers")
        self.blobs = BlobStore(folder / "blobs")
        self.store.open()
        self.blobs.open()
        self.progress: list[Progress] = []

    async def pull(
        self,
        image: str,
        *,
        credentials: Credentials | None = None,
        access: RegistryAccess | None = None,
        room: int = 1 << 24,
    ) -> PulledImage:
        return await pull(
            ImageReference.parse(image),
            store=self.store,
            blobs=self.blobs,
            access=access or RegistryAccess(),
            credentials=credentials,
            limits=UnpackLimits(max_bytes=room),
            pins=set(),
            progress=self.progress.append,
        )

    def trees(self, image: PulledImage) -> list[dict[str, str]]:
        """What each layer holds, the lowest first."""
        return [listing(self.store.tree(id)) for id in reversed(image.layers)]
