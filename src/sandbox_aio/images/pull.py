"""Pulling an image: downloads that run ahead, and an unpacking that follows them from the lowest layer up."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from typing import IO, TYPE_CHECKING, Final

from ..shielding import shielded
from .errors import ImageError
from .known_blobs import KnownBlob
from .manifest import Manifest, chain_ids, choose_platform, parse_config, parse_manifest
from .pulled import Progress
from .registry import Registry
from .stacking import Stacking
from .unpack import OVERHEAD

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from .access import Credentials, RegistryAccess
    from .download import BlobStore
    from .layers import LayerStore
    from .manifest import Descriptor, ImageConfig
    from .pulled import PulledImage
    from .reference import ImageReference
    from .unpack import UnpackLimits

__all__ = ["pull"]

AT_ONCE: Final = 4
"""Layers of one image that are downloaded at once."""
MAX_CONFIG: Final = 8 << 20


async def pull(
    reference: ImageReference,
    *,
    store: LayerStore,
    blobs: BlobStore,
    access: RegistryAccess,
    credentials: Credentials | None = None,
    limits: UnpackLimits,
    pins: set[str],
    progress: Callable[[Progress], None] = lambda progress: None,
) -> PulledImage:
    """Bring an image's layers into the store; those that are there are neither downloaded nor unpacked.

    `limits` are the whole image's. Every layer's id is put into `pins` before anybody could take the layer away.
    Raises ImageError; OSError when the disk is full or fails. Cancellation: layers that are whole stay in the store.
    """
    async with Registry(reference.registry, access, credentials) as registry:
        manifest, digest, config = await _describe(registry, reference)
        pulling = _Pull(registry, reference, store, blobs, limits, pins, progress)
        return await pulling.run(manifest, digest, config)


async def _describe(registry: Registry, reference: ImageReference) -> tuple[Manifest, str, ImageConfig]:
    image = str(reference)
    data, digest = await registry.manifest(reference.repository, reference.wanted)
    manifest = parse_manifest(data, image=image)
    if not isinstance(manifest, Manifest):
        chosen = choose_platform(manifest, image=image)
        data, digest = await registry.manifest(reference.repository, chosen.digest)
        manifest = parse_manifest(data, image=image)
        if not isinstance(manifest, Manifest):
            raise ImageError(f"{image} cannot be used: an index in its index", kind="ImagePull")
    if manifest.config.size > MAX_CONFIG:
        raise ImageError(f"{image} cannot be used: its configuration is over {MAX_CONFIG:,} bytes", kind="ImagePull")
    data = await registry.blob(reference.repository, manifest.config.digest, manifest.config.size)
    return manifest, digest, parse_config(data, image=image, layers=len(manifest.layers))


class _Pull:
    def __init__(
        self,
        registry: Registry,
        reference: ImageReference,
        store: LayerStore,
        blobs: BlobStore,
        limits: UnpackLimits,
        pins: set[str],
        progress: Callable[[Progress], None],
    ) -> None:
        self._reference = reference
        self._place = f"{reference.registry}/{reference.repository}"
        self._store = store
        self._limits = limits
        self._pins = pins
        self._progress = progress
        self._downloads = _Downloads(lambda layer: blobs.hold(registry, reference.repository, layer, self._count))
        self._done = self._total = self._bytes_done = self._bytes_total = 0

    async def run(self, manifest: Manifest, digest: str, config: ImageConfig) -> PulledImage:
        """Have every layer in the store."""
        chains = chain_ids(config.diff_ids)
        missing = [layer for layer, chain in zip(manifest.layers, chains, strict=True) if not self._store.find(chain)]
        self._total = len(manifest.layers)
        self._bytes_total = sum({layer.digest: layer.size for layer in missing}.values())
        stacking = Stacking(str(self._reference), self._store, self._limits, self._pins)
        stacking.require_room(self._bytes_total - OVERHEAD)  # Before it has filled the disk.
        wanted = Counter(layer.digest for layer in manifest.layers)
        async with self._downloads:
            for layer in missing:
                self._downloads.begin(layer)
            for layer, chain, diff_id in zip(manifest.layers, chains, config.diff_ids, strict=True):
                self._report()
                name = f"the layer {layer.digest[:19]} of {self._reference}"
                blob = KnownBlob.of(layer, diff_id, self._place)
                await stacking.add(chain, diff_id, name, functools.partial(self._fetch, layer), blob)
                self._done += 1
                wanted[layer.digest] -= 1
                if not wanted[layer.digest]:
                    await self._downloads.release(layer)
        self._report()
        return stacking.image(digest, config)

    async def _fetch(self, layer: Descriptor) -> Callable[[], IO[bytes]]:
        path = await self._downloads.get(layer)
        return lambda: path.open("rb", buffering=0)

    def _count(self, size: int) -> None:
        self._bytes_done += size
        self._report()

    def _report(self) -> None:
        self._progress(
            Progress(
                layers_done=self._done,
                layers_total=self._total,
                bytes_done=self._bytes_done,
                bytes_total=self._bytes_total,
            )
        )


class _Downloads:
    """The layers of one pull on their way, so many at once; each file is there until its layer is released. Use it in
    `async with`: what is not released by then is kept for another try if the block failed.
    """

    def __init__(self, hold: Callable[[Descriptor], AbstractAsyncContextManager[Path]]) -> None:
        self._hold = hold
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[Path]] = {}
        self._held: dict[str, AbstractAsyncContextManager[Path]] = {}

    async def __aenter__(self) -> None:
        return

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks.values():
            task.cancel()
        try:
            # What came of them is looked at, so that no failure is reported as never looked at.
            await shielded(asyncio.gather(*self._tasks.values(), return_exceptions=True))
        finally:
            for holding in self._held.values():
                await holding.__aexit__(kind, error, traceback)

    def begin(self, layer: Descriptor) -> asyncio.Task[Path]:
        """Have a layer brought, if it is not on its way."""
        if layer.digest not in self._tasks:
            self._tasks[layer.digest] = asyncio.create_task(self._bring(layer))
        return self._tasks[layer.digest]

    async def get(self, layer: Descriptor) -> Path:
        """Wait for a layer. Cancellation: it is brought all the same."""
        return await asyncio.shield(self.begin(layer))

    async def release(self, layer: Descriptor) -> None:
        """Give a layer up that is unpacked, so that there is room for the next ones."""
        if (holding := self._held.pop(layer.digest, None)) is not None:
            await holding.__aexit__(None, None, None)

    async def _bring(self, layer: Descriptor) -> Path:
        async with self._slots:
            holding = self._hold(layer)
            path = await holding.__aenter__()
            self._held[layer.digest] = holding
            return path
