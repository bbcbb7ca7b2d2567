"""Layers on their way from a registry: files named by their digest, which are resumed, verified and shared."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Final

import httpx

from ..removal import remove_tree
from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from .manifest import Descriptor
    from .registry import Registry

__all__ = ["BlobStore"]

BATCH: Final = 1 << 20
"""Bytes that are hashed and written at once."""
FRUITLESS_TRIES: Final = 5
"""Connections in a row that bring nothing new."""


class BlobStore:
    """The blobs of one directory. One process at a time uses it, in one event loop.

    Who needs a blob holds it; when nobody does any more it is removed. What was half downloaded stays for the next try,
    also of a later server, until `sweep`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory: Path = directory
        self._holders: dict[str, int] = {}
        self._downloads: dict[str, asyncio.Task[Path]] = {}
        self._whole: set[str] = set()

    def open(self) -> None:
        """Make the directory. Blocks."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._whole = {path.name.replace("-", ":") for path in self.directory.iterdir() if path.suffix != ".part"}

    def sweep(self) -> None:
        """Remove what nobody holds, half downloaded or whole."""
        for path in self.directory.iterdir():
            if (digest := path.name.partition(".")[0].replace("-", ":")) not in self._holders:
                self._whole.discard(digest)
                remove_tree(str(path))

    @contextlib.asynccontextmanager
    async def hold(
        self, registry: Registry, repository: str, blob: Descriptor, on_bytes: Callable[[int], None]
    ) -> AsyncIterator[Path]:
        """A verified blob, as a file that is there while the block is. Two that ask at once share one download, whose
        bytes are told to the first.

        Raises ImageError, of kind `ImagePull`, when it cannot be had, or is not what its digest and size say.
        """
        digest = blob.digest
        self._holders[digest] = self._holders.get(digest, 0) + 1
        path = self.directory / digest.replace(":", "-")
        whole = False
        try:
            yield await self._get(registry, repository, blob, path, on_bytes)
            whole = True
        finally:
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest]
                if whole:
                    self._whole.discard(digest)
                    path.unlink()

    async def _get(
        self, registry: Registry, repository: str, blob: Descriptor, path: Path, on_bytes: Callable[[int], None]
    ) -> Path:
        while blob.digest not in self._whole:
            task = self._downloads.get(blob.digest)
            if task is None:
                task = asyncio.create_task(_download(registry, repository, blob, path, on_bytes))
                self._downloads[blob.digest] = task
                task.add_done_callback(lambda _: self._downloads.pop(blob.digest, None))
                try:
                    await task
                    self._whole.add(blob.digest)
                except asyncio.CancelledError:
                    task.cancel()
                    await asyncio.wait([task])
                    raise
            else:
                await asyncio.wait([task])  # If it fails, or is cancelled, this caller downloads it instead.
        return path


async def _download(
    registry: Registry, repository: str, blob: Descriptor, path: Path, on_bytes: Callable[[int], None]
) -> Path:
    part = path.with_name(f"{path.name}.part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        digest, have = await asyncio.to_thread(_rehash, descriptor, blob.size)
        on_bytes(have)
        fruitless = 0
        while have < blob.size or blob.size == 0:
            before = have
            try:
                async with registry.open_blob(repository, blob.digest, have) as response:
                    if have and response.status_code != 206:
                        on_bytes(-have)
                        os.ftruncate(descriptor, 0)
                        os.lseek(descriptor, 0, os.SEEK_SET)
                        digest, have, before = hashlib.sha256(), 0, 0
                    async for batch in _batches(response):
                        have += len(batch)
                        if have > blob.size:
                            raise ImageError(
                                f"the layer {blob.digest} of {repository} is longer than the {blob.size:,} bytes that "
                                "its manifest says",
                                kind="ImagePull",
                            )
                        await asyncio.to_thread(_append, descriptor, digest, batch)
                        on_bytes(len(batch))
            except (httpx.HTTPError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None and have == before:
                    raise
                failure: BaseException | None = error
            else:
                failure = None
                if blob.size == 0:
                    break
            fruitless = 0 if have > before else fruitless + 1
            if have < blob.size and fruitless >= FRUITLESS_TRIES:
                message = f"the layer {blob.digest} of {repository} breaks off after {have:,} of {blob.size:,} bytes"
                raise ImageError(message, kind="ImagePull") from failure
            if have < blob.size:
                await asyncio.sleep(0.1 * 2**fruitless)
        if f"sha256:{digest.hexdigest()}" != blob.digest:
            part.unlink()
            raise ImageError(
                f"the layer {blob.digest} of {repository} is not what its digest says: {registry.name} or the way to "
                "it has damaged it",
                kind="ImagePull",
            )
        part.rename(path)
        return path
    finally:
        os.close(descriptor)


async def _batches(response: httpx.Response) -> AsyncIterator[bytes]:
    batch = bytearray()
    async for piece in response.aiter_raw():
        batch += piece
        if len(batch) >= BATCH:
            yield bytes(batch)
            batch.clear()
    if batch:
        yield bytes(batch)


def _append(descriptor: int, digest: hashlib._Hash, batch: bytes) -> None:
    digest.update(batch)
    left = memoryview(batch)
    while left:
        left = left[os.write(descriptor, left) :]


def _rehash(descriptor: int, size: int) -> tuple[hashlib._Hash, int]:
    """What an earlier try has left, as far as it can be used."""
    digest, have = hashlib.sha256(), 0
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, 0)
    while piece := os.read(descriptor, BATCH):
        digest.update(piece)
        have += len(piece)
    return digest, have
