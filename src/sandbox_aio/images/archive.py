"""Images in a file: what `docker save`, `podman save` and `skopeo copy ... oci-archive:` write.

Two forms are known, and whatever writes one of them today writes the other beside it: an OCI image layout
(`index.json`, `blobs/`) and Docker's own (`manifest.json`). The layout is preferred, since it has digests to check.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import tarfile
import tempfile
from typing import IO, TYPE_CHECKING, Final

import attrs

from ..shielding import in_thread, shielded
from .compression import CHUNK, MAGIC, StoppableReader, TarStream, is_compressed
from .errors import ImageError
from .manifest import (
    MAX_IMAGE_LAYERS,
    ImageConfig,
    Manifest,
    chain_ids,
    choose_platform,
    parse_config,
    parse_manifest,
)
from .stacking import Stacking
from .tar_headers import BoundedInfo, HeaderStream

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from .compression import Reader
    from .layers import LayerStore
    from .pulled import PulledImage
    from .unpack import UnpackLimits

__all__ = ["import_archive"]

MAX_MEMBERS: Final = 10_000
"""Members of an archive; a layer takes three in the form with most of them."""
MAX_DOCUMENT: Final = 8 << 20
"""Bytes of a manifest, an index or a configuration."""


@attrs.frozen
class _Part:
    """A layer in the archive, by the name of its member."""

    member: str
    diff_id: str


async def import_archive(
    path: Path, *, store: LayerStore, limits: UnpackLimits, pins: set[str], name: str = "the archive"
) -> PulledImage:
    """Bring the layers of the one image in a tar file into the store, as `pull` does.

    The file may be compressed as a whole; then it is decompressed beside itself, into a file that no name leads to.
    `name` is what errors call the archive. Raises ImageError for a file that holds no image, more than one, or none for
    this machine, and for layers that are not what they are said to be; OSError when the disk is full or fails.
    Cancellation: layers that are whole stay in the store.
    """
    with contextlib.ExitStack() as stack:
        archive = await in_thread(lambda stop: _Archive.open(path, name, limits, stack, stop))
        return await _import(archive, store, limits, pins)


async def _import(archive: _Archive, store: LayerStore, limits: UnpackLimits, pins: set[str]) -> PulledImage:
    digest, config, parts = await shielded(asyncio.to_thread(archive.describe))
    stacking = Stacking(archive.name, store, limits, pins)
    for part, chain in zip(parts, chain_ids(config.diff_ids), strict=True):
        name = f"the layer {part.member[-71:]} of {archive.name}"
        await stacking.add(chain, part.diff_id, name, functools.partial(archive.fetch, part.member))
    return stacking.image(digest, config)


class _Archive:
    """A tar file whose members are looked up by name. Everything here blocks, and is for one thread at a time."""

    def __init__(self, tar: tarfile.TarFile, name: str) -> None:
        self.name = name
        self._tar = tar
        self._members: dict[str, tarfile.TarInfo] = {}

    @classmethod
    def open(
        cls, path: Path, name: str, limits: UnpackLimits, stack: contextlib.ExitStack, stop: threading.Event
    ) -> _Archive:
        """Read which members there are. `stack` gets to close the file. Raises ImageError."""
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        try:
            if is_compressed(file.read(MAGIC)):
                file.seek(0)
                file = stack.enter_context(_decompressed(StoppableReader(file, stop), path, name, limits))
            file.seek(0)
            headers = HeaderStream(file)
            tar = tarfile.TarFile(fileobj=headers, tarinfo=BoundedInfo)  # type: ignore[arg-type]  # it reads and seeks
            archive = cls(tar, name)
            archive._index(headers)
        except (tarfile.TarError, ValueError) as error:
            raise archive_error(name, f"it is no tar archive: {error}") from error
        except ImageError as error:
            raise error if name in str(error) else archive_error(name, str(error)) from error
        return archive

    def _index(self, headers: HeaderStream) -> None:
        for member in self._tar:
            if len(self._members) >= MAX_MEMBERS:
                raise archive_error(self.name, f"it has more than {MAX_MEMBERS:,} members: it is not an image")
            if member.size < 0:
                raise archive_error(self.name, "a member has less than no bytes")
            self._members[member.name.removeprefix("./")] = member
            headers.next_entry()
        headers.in_content()

    def describe(self) -> tuple[str, ImageConfig, list[_Part]]:
        """The image's digest, its configuration, and its layers, the lowest first."""
        if "index.json" in self._members:
            return self._describe_layout()
        if "manifest.json" in self._members:
            return self._describe_docker()
        raise archive_error(self.name, "it has neither index.json nor manifest.json: it is not an image")

    def _describe_layout(self) -> tuple[str, ImageConfig, list[_Part]]:
        found = parse_manifest(self._document("index.json"), image=self.name)
        digest = ""
        for _ in range(3):  # An index may lead to an index, and that to a manifest.
            if isinstance(found, Manifest):
                break
            wanted = {descriptor.digest for _, descriptor in found}
            descriptor = found[0][1] if len(wanted) == 1 else choose_platform(found, image=self.name)
            digest = descriptor.digest
            found = parse_manifest(self._blob(digest), image=self.name)
        if not isinstance(found, Manifest):
            raise archive_error(self.name, "its indexes lead to no manifest")
        config = parse_config(self._blob(found.config.digest), image=self.name, layers=len(found.layers))
        parts = [
            _Part(_blob_name(layer.digest), diff_id)
            for layer, diff_id in zip(found.layers, config.diff_ids, strict=True)
        ]
        return digest, config, parts

    def _describe_docker(self) -> tuple[str, ImageConfig, list[_Part]]:
        try:
            (entry,) = json.loads(self._document("manifest.json"))
            layers, member = entry["Layers"], entry["Config"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise archive_error(self.name, "its manifest.json does not name one image; save one alone") from error
        if not isinstance(layers, list) or len(layers) > MAX_IMAGE_LAYERS or not isinstance(member, str):
            raise archive_error(self.name, "its manifest.json names no layers, or too many")
        data = self._document(member)
        config = parse_config(data, image=self.name, layers=len(layers))
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return digest, config, [_Part(str(one), id) for one, id in zip(layers, config.diff_ids, strict=True)]

    async def fetch(self, name: str) -> Callable[[], IO[bytes]]:
        """What opens a member. Does not block."""
        return functools.partial(self._open, name)

    def _open(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        if member is not None and member.issym():  # Older programs save a layer that two images share only once.
            way = f"{name.rpartition('/')[0]}/{member.linkname}".lstrip("/")
            member = self._members.get(_normal(way))
        file = self._tar.extractfile(member) if member is not None and member.isreg() else None
        if file is None:
            raise archive_error(self.name, f"it has no member {name[:200]!r}")
        return file

    def _document(self, name: str) -> bytes:
        with self._open(name) as file:
            data = file.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise archive_error(self.name, f"its {name[:200]!r} is over {MAX_DOCUMENT:,} bytes")
        return data

    def _blob(self, digest: str) -> bytes:
        data = self._document(_blob_name(digest))
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise archive_error(self.name, f"its part {digest} is not what its digest says")
        return data


def _decompressed(file: Reader, path: Path, name: str, limits: UnpackLimits) -> IO[bytes]:
    """The archive in a compressed one, in a file without a name."""
    target = tempfile.TemporaryFile(dir=path.parent)
    try:
        with TarStream(file, name=name, max_bytes=limits.archive_bytes) as stream:
            while piece := stream.read_some(CHUNK):
                target.write(piece)
        target.flush()
    except BaseException:
        target.close()
        raise
    return target


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _normal(way: str) -> str:
    parts: list[str] = []
    for part in way.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def archive_error(name: str, reason: str) -> ImageError:
    """What is said of a file that cannot be used."""
    return ImageError(f"{name} cannot be imported: {reason}", kind="ImagePull")
