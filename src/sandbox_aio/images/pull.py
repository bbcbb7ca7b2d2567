"""Pulling an image: downloads that run ahead, and an unpacking that follows them from the lowest layer up."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from ..shielding import in_thread, shielded
from .compression import StoppableReader
from .errors import ImageError
from .known_blobs import KnownBlob, remember
from .layers import LayerInfo
from .manifest import Manifest, chain_ids, choose_platform, parse_config, parse_manifest
from .pulled import Progress, PulledImage
from .registry import Registry
from .unpack import OVERHEAD, Unpacked, UnpackLimits, unpack_layer

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from .access import Credentials, RegistryAccess
    from .download import BlobStore
    from .layers import LayerStore
    from .manifest import Descriptor, ImageConfig
    from .reference import ImageReference

__all__ = ["pull", "unpack_file"]

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
        if self._bytes_total > self._limits.max_bytes + OVERHEAD:  # Before it has filled the disk.
            raise too_large(str(self._reference), self._limits)
        ids: list[str] = []
        size, notes = 0, list[str]()
        wanted = Counter(layer.digest for layer in manifest.layers)
        async with self._downloads:
            for layer in missing:
                self._downloads.begin(layer)
            for layer, chain, diff_id in zip(manifest.layers, chains, config.diff_ids, strict=True):
                self._report()
                id = await self._layer(layer, chain, diff_id, ids, size)
                info = self._store.describe(id)
                size += info.size_bytes
                notes += info.notes
                if size > self._limits.max_bytes:
                    raise too_large(str(self._reference), self._limits)
                ids.insert(0, id)
                self._done += 1
                wanted[layer.digest] -= 1
                if not wanted[layer.digest]:
                    await self._downloads.release(layer)
        self._report()
        return PulledImage(
            reference=str(self._reference),
            digest=digest,
            config=config,
            layers=tuple(ids),
            size_bytes=size,
            notes=tuple(notes),
        )

    async def _layer(self, layer: Descriptor, chain: str, diff_id: str, below: Sequence[str], used: int) -> str:
        lowers = [self._store.tree(id) for id in below]

        async def make(draft: Path) -> LayerInfo:
            path = await self._downloads.get(layer)
            name = f"the layer {layer.digest[:19]} of {self._reference}"
            limits = UnpackLimits(max_bytes=self._limits.max_bytes - used, max_entries=self._limits.max_entries)
            unpacked = await unpack_file(path, draft, lowers, limits=limits, owner=self._store.owner, name=name)
            if unpacked.diff_id != diff_id:
                raise ImageError(f"{name} unpacks to {unpacked.diff_id}, and should to {diff_id}", kind="ImageUnpack")
            if (blob := KnownBlob.of(layer, diff_id, self._place)) is not None:
                await shielded(asyncio.to_thread(remember, draft, blob))
            return LayerInfo(
                chain_id=chain,
                diff_id=diff_id,
                size_bytes=unpacked.size_bytes,
                entries=unpacked.entries,
                notes=unpacked.notes,
            )

        return await self._store.ensure(chain, make, self._pins)

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


def too_large(image: str, limits: UnpackLimits) -> ImageError:
    """What is said of an image that there is no room for."""
    return ImageError(
        f"{image} holds more than the {limits.max_bytes:,} bytes that the snapshot may: raise fs_capacity_bytes",
        kind="ImageTooLarge",
    )


async def unpack_file(
    path: Path, draft: Path, lowers: Sequence[Path], *, limits: UnpackLimits, owner: int, name: str
) -> Unpacked:
    """Unpack a file in a thread. Cancellation: stops it, and waits for its end, so that the draft can be removed."""

    def work(stop: threading.Event) -> Unpacked:
        with path.open("rb", buffering=0) as file:
            source = StoppableReader(file, stop)
            return unpack_layer(source, draft / "tree", lowers, limits=limits, owner=owner, name=name)

    return await in_thread(work)
