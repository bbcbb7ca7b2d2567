"""Pushing an image: its layers are packed and sent, several at once, unless the registry has them already."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Final

import attrs

from ..shielding import in_thread, shielded
from .errors import ImageError
from .gzip_writer import GzipWriter
from .known_blobs import KnownBlob, known_blobs, remember
from .manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor, write_config
from .pack import pack_layer
from .pulled import Progress
from .registry import Registry
from .scratch import scratch
from .upload import Uploads

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .access import Credentials, RegistryAccess
    from .layers import LayerStore
    from .manifest import ImageConfig
    from .reference import ImageReference

__all__ = ["push"]

AT_ONCE: Final = 3
"""Layers of one image that are packed and sent at once."""
_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"


async def push(
    reference: ImageReference,
    *,
    store: LayerStore,
    layers: Sequence[str],
    config: ImageConfig,
    access: RegistryAccess,
    credentials: Credentials | None = None,
    work: Path,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> str:
    """Make an OCI image of layers of the store, their ids the topmost first, and return the digest of its manifest.

    Equal layers and configurations give the same digest. `config.diff_ids` are not looked at. `work` is where some
    layers are at a time, compressed: see `scratch`. The caller keeps the layers from being discarded.
    Raises ImageError; OSError when the disk is full or fails. Cancellation: the registry may have some of the layers;
    there is no manifest for them.
    """
    if reference.tag is None:
        raise ImageError(f"{reference} cannot be pushed to: a push needs a tag, not a digest", kind="ImageReference")
    if not layers:
        raise ImageError(f"nothing can be pushed to {reference}: the snapshot has no layers", kind="ImageExport")
    async with (
        Registry(reference.registry, access, credentials, kind="ImageExport") as registry,
        scratch(work, "push") as folder,
    ):
        pushing = _Push(registry, reference, store, folder, len(layers), progress)
        blobs = await pushing.layers(layers)
        document = write_config(attrs.evolve(config, diff_ids=tuple(blob.diff_id for blob in blobs)))
        described = await pushing.small(document)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": described.digest, "size": described.size},
            "layers": [blob.descriptor for blob in blobs],
        }
        data = json.dumps(manifest, separators=(",", ":")).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        await pushing.uploads.manifest(reference.tag, data, OCI_MANIFEST, digest)
        return digest


class _Push:
    def __init__(
        self,
        registry: Registry,
        reference: ImageReference,
        store: LayerStore,
        folder: Path,
        total: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self.uploads: Uploads = Uploads(registry, reference.repository, self._count)
        self._reference = reference
        self._place = f"{reference.registry}/{reference.repository}"
        self._store = store
        self._folder = folder
        self._progress = progress
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._done, self._total = 0, total
        self._bytes_done = self._bytes_total = 0

    async def layers(self, ids: Sequence[str]) -> list[KnownBlob]:
        """Have every layer in the repository; the answer has the lowest first."""
        self._report()
        tasks = {id: asyncio.create_task(self._layer(id)) for id in reversed(ids)}
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return [tasks[id].result() for id in reversed(ids)]

    async def small(self, data: bytes) -> Descriptor:
        """Have a configuration in the repository."""
        described = Descriptor(digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
        if not await self.uploads.has(described.digest):
            self._bytes_total += described.size
            await self.uploads.put(described.digest, described.size, data)
        return described

    async def _layer(self, id: str) -> KnownBlob:
        async with self._slots:
            blob = await self._find(id) or await self._send(id)
            with contextlib.suppress(FileNotFoundError):  # A layer that is discarded is of no more use.
                blob = attrs.evolve(blob, places=(self._place,))
                await shielded(asyncio.to_thread(remember, self._store.directory / id, blob))
            self._done += 1
            self._report()
            return blob

    async def _find(self, id: str) -> KnownBlob | None:
        """The layer as the registry has it, if it does."""
        for blob in await asyncio.to_thread(known_blobs, self._store.directory / id):
            if await self.uploads.has(blob.digest):
                return blob
            for place in blob.places:
                registry, _, repository = place.partition("/")
                if (
                    registry == self._reference.registry
                    and repository != self._reference.repository
                    and await self.uploads.mount(blob.digest, repository)
                ):
                    return blob
        return None

    async def _send(self, id: str) -> KnownBlob:
        path = self._folder / id
        blob = await in_thread(lambda stop: self._pack(id, path, stop))
        if not await self.uploads.has(blob.digest):
            self._bytes_total += blob.size
            self._report()
            await self.uploads.put(blob.digest, blob.size, path)
        path.unlink()
        return blob

    def _pack(self, id: str, path: Path, stop: threading.Event) -> KnownBlob:
        with path.open("wb") as out, GzipWriter(out, stop) as archive:
            packed = pack_layer(self._store.tree(id), archive, owner=self._store.owner)
        return KnownBlob(digest=archive.digest, size=archive.size, media_type=_GZIP, diff_id=packed.diff_id)

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
                doing="pushing",
            )
        )
