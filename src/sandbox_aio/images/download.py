"""Layers on their way from a registry: files named by their digest, which are resumed, verified and shared."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

import httpx

from ..removal import remove_tree
from ..shielding import shielded
from .answers import raw_body
from .errors import ImageError
from .registry import SILENCE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
    from pathlib import Path

    from .manifest import Descriptor
    from .registry import Registry

__all__ = ["BlobStore"]

BATCH: Final = 1 << 20
"""Bytes that are hashed and written at once, while the next ones arrive."""
FRUITFUL: Final = 64 << 10
"""Bytes that a connection must bring, in each `SILENCE` seconds and in all, to count as one that brings something."""
FRUITLESS_TRIES: Final = 5
"""Connections in a row that bring less."""
FIRST_PAUSE: Final = 0.1
"""Seconds before a layer is asked for again; they double while nothing comes."""
_RANGE: Final = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)", re.ASCII)


class BlobStore:
    """The blobs of one directory. One process at a time uses it, in one event loop; `scratch` makes directories in it.

    Who needs a blob holds it; when nobody does any more it is removed. What was half downloaded stays for the next try,
    also of a later server, until `sweep`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory: Path = directory
        self._holders: dict[str, int] = {}
        self._downloads: dict[str, _Download] = {}
        self._whole: dict[str, int] = {}

    def open(self) -> None:
        """Make the directory. What an earlier server left in it counts as half downloaded, and so is verified again: a
        crash of the machine may have damaged it. Blocks.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in list(self.directory.iterdir()):
            if path.is_dir():  # what `scratch` made
                remove_tree(str(path))
            elif path.suffix != ".part":
                path.rename(path.with_name(f"{path.name}.part"))

    def sweep(self) -> None:
        """Remove what nobody holds, half downloaded or whole."""
        for path in self.directory.iterdir():
            if path.is_dir():
                continue
            if (digest := path.name.partition(".")[0].replace("-", ":")) not in self._holders:
                self._whole.pop(digest, None)
                path.unlink()

    @contextlib.asynccontextmanager
    async def hold(
        self, registry: Registry, repository: str, blob: Descriptor, on_bytes: Callable[[int], None]
    ) -> AsyncIterator[Path]:
        """A verified blob, as a file that is there while the block is. Several that ask at once share one download, and
        are all told of its bytes, as they come; fewer than none when it had to begin anew.

        Raises ImageError, of kind `ImagePull`, when it cannot be had, or is not what its digest and size say. Raises
        OSError when the disk is full or fails.
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
                    del self._whole[digest]
                    path.unlink()

    async def _get(
        self, registry: Registry, repository: str, blob: Descriptor, path: Path, on_bytes: Callable[[int], None]
    ) -> Path:
        told = 0

        def tell(size: int) -> None:
            nonlocal told
            told += size
            on_bytes(size)

        while (size := self._whole.get(blob.digest)) is None:
            download = self._downloads.get(blob.digest)
            if download is None:
                download = _Download(registry, repository, blob, path)
                self._downloads[blob.digest] = download
                with download.listening(tell):
                    try:
                        await download.run()
                        self._whole[blob.digest] = blob.size
                    finally:
                        del self._downloads[blob.digest]
                        download.over.set()
            else:
                with download.listening(tell):
                    await download.over.wait()  # If it fails, or is cancelled, this caller downloads it instead.
            if blob.digest not in self._whole:
                tell(-told)
        if size != blob.size:
            raise _wrong_size(repository, blob, size)
        tell(size - told)
        return path


class _Download:
    """One blob, into `path`, by way of a file of which the name ends in `.part`."""

    def __init__(self, registry: Registry, repository: str, blob: Descriptor, path: Path) -> None:
        self.over: asyncio.Event = asyncio.Event()
        self._registry = registry
        self._repository = repository
        self._blob = blob
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._listeners: list[Callable[[int], None]] = []
        self._descriptor = -1
        self._digest = hashlib.sha256()
        self._have = 0

    @contextlib.contextmanager
    def listening(self, listener: Callable[[int], None]) -> Iterator[None]:
        """Have a listener told of what is there, and then of what comes."""
        listener(self._have)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def run(self) -> None:
        """Have the file whole. Cancellation: what was written stays for the next try; nothing is written any more."""
        self._descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await shielded(asyncio.to_thread(self._recall))
            inherited = self._have > 0
            self._tell(self._have)
            while True:
                await self._fill()
                if self._matches():
                    break
                # What an earlier server left may be damaged, or what a mirror sent.
                if not inherited and not self._registry.forsake_mirrors():
                    self._part.unlink()
                    raise ImageError(
                        f"the layer {self._blob.digest} of {self._repository} is not what its digest says: "
                        f"{self._registry.name} or the way to it has damaged it",
                        kind="ImagePull",
                    )
                inherited = False
                self._restart()
            self._part.rename(self._path)
        finally:
            os.close(self._descriptor)

    async def _fill(self) -> None:
        fruitless = 0
        while self._have < self._blob.size:
            before, failure = self._have, None
            try:
                await self._connect()
            except httpx.HTTPError as error:
                failure = error
            fruitless = 0 if self._have - before >= FRUITFUL else fruitless + 1
            if self._have < self._blob.size:
                if fruitless >= FRUITLESS_TRIES:
                    raise ImageError(
                        f"the layer {self._blob.digest} of {self._repository} breaks off after {self._have:,} of "
                        f"{self._blob.size:,} bytes",
                        kind="ImagePull",
                    ) from failure
                await asyncio.sleep(FIRST_PAUSE * 2**fruitless)

    async def _connect(self) -> None:
        """Take what one connection brings."""
        async with self._registry.open_blob(self._repository, self._blob.digest, self._have) as response:
            if response.status_code == 416:
                if self._matches():
                    raise _wrong_size(self._repository, self._blob, self._have)
                self._restart()
                return
            begin = _begin(response)
            if begin != self._have:
                self._restart()
                if begin:
                    return
            await self._take(response)

    async def _take(self, response: httpx.Response) -> None:
        """Write each batch while the next one arrives."""
        writing: asyncio.Task[None] | None = None
        try:
            async with contextlib.aclosing(_batches(response)) as batches:
                async for batch in batches:
                    if writing is not None:
                        await asyncio.shield(writing)
                    if self._have + len(batch) > self._blob.size:
                        raise ImageError(
                            f"the layer {self._blob.digest} of {self._repository} is longer than the "
                            f"{self._blob.size:,} bytes that its manifest says",
                            kind="ImagePull",
                        )
                    self._have += len(batch)
                    writing = asyncio.create_task(asyncio.to_thread(self._append, batch))
                    self._tell(len(batch))
        finally:
            if writing is not None:
                await shielded(writing)

    def _append(self, batch: bytes) -> None:
        self._digest.update(batch)
        left = memoryview(batch)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def _recall(self) -> None:
        """Take what an earlier try has left, as far as it can be used."""
        if os.fstat(self._descriptor).st_size > self._blob.size:
            os.ftruncate(self._descriptor, 0)
        while piece := os.read(self._descriptor, BATCH):
            self._digest.update(piece)
            self._have += len(piece)

    def _restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        have, self._have = self._have, 0
        self._digest = hashlib.sha256()
        self._tell(-have)

    def _matches(self) -> bool:
        return f"sha256:{self._digest.hexdigest()}" == self._blob.digest

    def _tell(self, size: int) -> None:
        for listener in self._listeners:
            listener(size)


def _begin(response: httpx.Response) -> int:
    """Where in the blob an answer begins; one that does not say it well begins nowhere, which is not where we are."""
    if response.status_code != 206:
        return 0
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match[1]) if match else -1


async def _batches(response: httpx.Response) -> AsyncGenerator[bytes]:
    """What arrives, in batches. A connection that is so slow that it could hold a pull up for ever is given up."""
    batch = bytearray()
    try:
        async with raw_body(response) as pieces:
            ended = False
            while not ended:
                async with asyncio.timeout(SILENCE):
                    async for piece in pieces:
                        batch += piece
                        if len(batch) >= BATCH:
                            break
                    else:
                        ended = True
                if batch:
                    yield bytes(batch)
                    batch.clear()
    except OSError as error:
        if batch:
            yield bytes(batch)
        raise httpx.ReadError(f"the connection broke off: {type(error).__name__} {error}") from error
    except httpx.HTTPError:
        if batch:
            yield bytes(batch)
        raise


def _wrong_size(repository: str, blob: Descriptor, size: int) -> ImageError:
    return ImageError(
        f"the layer {blob.digest} of {repository} has {size:,} bytes, and the manifest says {blob.size:,}",
        kind="ImagePull",
    )
