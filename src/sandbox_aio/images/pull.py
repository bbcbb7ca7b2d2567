"""Pulling an image: downloads that run ahead, and an unpacking that follows them from the lowest layer up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from ..shielding import shielded
from .errors import ImageError
from .known_blobs import KnownBlob, remember
from .layers import LayerInfo
from .manifest import Manifest, chain_ids, choose_platform, parse_config, parse_manifest
from .pulled import Progress, PulledImage
from .registry import Registry
from .unpack import OVERHEAD, Unpacked, UnpackLimits, unpack_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

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
        self._registry = registry
        self._reference = reference
        self._place = f"{reference.registry}/{reference.repository}"
        self._store = store
        self._blobs = blobs
        self._limits = limits
        self._pins = pins
        self._progress = progress
        self._slots = asyncio.Semaphore(AT_ONCE)
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
        async with contextlib.AsyncExitStack() as stack:
            tasks: dict[str, asyncio.Task[Path]] = {}
            stack.push_async_callback(_end, tasks)
            for layer in missing:
                if layer.digest not in tasks:
                    tasks[layer.digest] = asyncio.create_task(self._download(stack, layer))
            for layer, chain, diff_id in zip(manifest.layers, chains, config.diff_ids, strict=True):
                self._report()
                id = await self._layer(tasks, stack, layer, chain, diff_id, ids, size)
                info = self._store.describe(id)
                size += info.size_bytes
                notes += info.notes
                if size > self._limits.max_bytes:
                    raise too_large(str(self._reference), self._limits)
                ids.insert(0, id)
                self._done += 1
        self._report()
        return PulledImage(
            reference=str(self._reference),
            digest=digest,
            config=config,
            layers=tuple(ids),
            size_bytes=size,
            notes=tuple(notes),
        )

    async def _layer(
        self,
        tasks: dict[str, asyncio.Task[Path]],
        stack: contextlib.AsyncExitStack,
        layer: Descriptor,
        chain: str,
        diff_id: str,
        below: Sequence[str],
        used: int,
    ) -> str:
        lowers = [self._store.tree(id) for id in below]

        async def make(draft: Path) -> LayerInfo:
            if layer.digest not in tasks:  # It was there when the pull began.
                tasks[layer.digest] = asyncio.create_task(self._download(stack, layer))
            path = await asyncio.shield(tasks[layer.digest])
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

    async def _download(self, stack: contextlib.AsyncExitStack, layer: Descriptor) -> Path:
        async with self._slots:
            holding = self._blobs.hold(self._registry, self._reference.repository, layer, self._count)
            return await stack.enter_async_context(holding)

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


async def _end(tasks: dict[str, asyncio.Task[Path]]) -> None:
    """End what still downloads, and look at what came of it, so that no failure is reported as never looked at."""
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


def too_large(image: str, limits: UnpackLimits) -> ImageError:
    """What is said of an image that there is no room for."""
    return ImageError(
        f"{image} holds more than the {limits.max_bytes:,} bytes that the snapshot may: raise fs_capacity_bytes",
        kind="ImageTooLarge",
    )


async def unpack_file(
    path: Path, draft: Path, lowers: Sequence[Path], *, limits: UnpackLimits, owner: int, name: str
) -> Unpacked:
    """Unpack a file in a thread. Cancellation: waits until the thread has ended, so that the draft can be removed."""

    def work() -> Unpacked:
        with path.open("rb", buffering=0) as source:
            return unpack_layer(source, draft / "tree", lowers, limits=limits, owner=owner, name=name)

    return await shielded(asyncio.to_thread(work))
