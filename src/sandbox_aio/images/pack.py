"""Packing a layer: an overlay tree as an archive that any registry and any runtime takes (OCI image specification).

The same tree gives the same bytes: names are in order, and times are in whole seconds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final, Protocol

import attrs

from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Packed", "Writer", "pack_layer"]

BLOCK: Final = 512
PIECE: Final = 1 << 20
RECORD: Final = 20 * BLOCK
"""Archives are a multiple of it."""
_OPAQUE: Final = b"user.overlay.opaque"
_OURS: Final = (b"user.overlay.", b"trusted.overlay.")
_UNKNOWN: Final = (b"redirect", b"metacopy", b"whiteout")
"""Attributes of overlayfs that would change what the tree means."""
_MAX_OCTAL: Final = 8**7
_MAX_SIZE: Final = 8**11
_CAPABILITY: Final = b"security.capability"


class Writer(Protocol):
    """Anything that bytes are written to, all of them at once."""

    def write(self, data: bytes, /) -> int: ...


@attrs.frozen(kw_only=True)
class Packed:
    """What came of it."""

    diff_id: str
    """The digest of the archive."""
    size_bytes: int
    """How long it is."""
    entries: int


def pack_layer(tree: Path, out: Writer, *, owner: int = 0) -> Packed:
    """Write the archive of a tree. Blocks. `owner` is taken from all ids; an ordinary user's files are root's in it.

    Holes are written as `.wh.` files; sockets, which no archive can hold, are left out. Raises ImageError, of kind
    `ImageExport`, for names that an archive would turn into something else, and OSError.
    """
    packer = _Packer(out, owner if os.geteuid() == 0 else None)
    try:
        for path, name in _walk(os.fsencode(tree)):
            packer.add(path, name)
    except PermissionError as error:
        where = os.path.relpath(os.fsdecode(error.filename), tree) if error.filename else "something in it"
        raise ImageError(
            f"{where!r} may not be read by an ordinary user; run the server as root to export it", kind="ImageExport"
        ) from error
    packer.finish()
    return Packed(diff_id=f"sha256:{packer.digest.hexdigest()}", size_bytes=packer.size, entries=packer.entries)


def _walk(tree: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every path in a tree and its name in the archive, each directory before what is in it."""
    waiting = [(tree, b"")]
    while waiting:
        path, name = waiting.pop()
        if name:
            yield path, name
        if stat.S_ISDIR(os.lstat(path).st_mode):
            prefix = name + b"/" if name else b""
            waiting += ((path + b"/" + entry, prefix + entry) for entry in sorted(os.listdir(path), reverse=True))


class _Packer:
    def __init__(self, out: Writer, owner: int | None) -> None:
        self._out = out
        self._owner = owner
        self._links: dict[tuple[int, int], bytes] = {}
        self.digest: hashlib._Hash = hashlib.sha256()
        self.size: int = 0
        self.entries: int = 0

    def add(self, path: bytes, name: bytes) -> None:
        """Write one entry, and, of an opaque directory, the mark for it."""
        status = os.lstat(path)
        folder, _, last = name.rpartition(b"/")
        prefix = folder + b"/" if folder else b""
        if last.startswith(b".wh."):
            raise ImageError(
                f"{os.fsdecode(name)!r} cannot be in an image: .wh. marks what is removed", kind="ImageExport"
            )
        kind = status.st_mode
        if stat.S_ISCHR(kind) and status.st_rdev == 0:
            self._entry(prefix + b".wh." + last, b"0", status, mode=0, records=[])
            return
        if stat.S_ISSOCK(kind):
            return
        attributes = self._attributes(path, name)
        records = [(b"SCHILY.xattr." + key, value) for key, value in attributes if not key.startswith(_OURS)]
        if stat.S_ISDIR(kind):
            self._entry(name + b"/", b"5", status, records=records)
            if (_OPAQUE, b"y") in attributes:
                self._entry(name + b"/.wh..wh..opq", b"0", status, mode=0, records=[])
        elif status.st_nlink > 1 and (first := self._links.setdefault((status.st_dev, status.st_ino), name)) != name:
            self._entry(name, b"1", status, link=first, records=[])
        elif stat.S_ISLNK(kind):
            self._entry(name, b"2", status, link=os.readlink(path), records=records)
        elif stat.S_ISREG(kind):
            self._entry(name, b"0", status, size=status.st_size, records=records)
            self._content(path, status.st_size)
        else:
            type = b"6" if stat.S_ISFIFO(kind) else b"3" if stat.S_ISCHR(kind) else b"4"
            self._entry(name, type, status, records=records)

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.size % RECORD))

    def _attributes(self, path: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
        found = []
        for text in sorted(os.listxattr(path, follow_symlinks=False)):
            key = os.fsencode(text)
            if key.startswith(_OURS) and key.rpartition(b".")[2] in _UNKNOWN:
                raise ImageError(f"{os.fsdecode(name)!r} has {text}, which no archive can say", kind="ImageExport")
            if b"=" in key:
                raise ImageError(f"{os.fsdecode(name)!r} has {text!r}, which no archive can say", kind="ImageExport")
            value = os.getxattr(path, text, follow_symlinks=False)
            if key == _CAPABILITY and len(value) == 24:
                # Of a user namespace; in the image it is simply root's.
                value = value[:3] + b"\x02" + value[4:20]
            found.append((key, value))
        return found

    def _entry(
        self,
        name: bytes,
        type: bytes,
        status: os.stat_result,
        *,
        records: list[tuple[bytes, bytes]],
        mode: int | None = None,
        size: int = 0,
        link: bytes = b"",
    ) -> None:
        """Write a header; before it an extended one, of all that does not fit."""
        uid, gid = (0, 0) if self._owner is None else (status.st_uid - self._owner, status.st_gid - self._owner)
        if uid < 0 or gid < 0:
            raise ImageError(f"{os.fsdecode(name)!r} belongs to nobody in the sandbox", kind="ImageExport")
        extended = list(records)
        if len(name) > 100 or not name.isascii():
            extended.append((b"path", name))
        if len(link) > 100 or not link.isascii():
            extended.append((b"linkpath", link))
        extended += [(key, b"%d" % id) for key, id in ((b"uid", uid), (b"gid", gid)) if id >= _MAX_OCTAL]
        if size >= _MAX_SIZE:
            extended.append((b"size", b"%d" % size))
        time = int(status.st_mtime_ns // 10**9)
        if not 0 <= time < _MAX_SIZE:
            extended.append((b"mtime", b"%d" % time))
        if extended:
            body = b"".join(_record(key, value) for key, value in extended)
            self._write(_header(b"pax", b"x", 0o644, 0, 0, len(body), 0))
            self._write(body + bytes(-len(body) % BLOCK))
        is_device = type in (b"3", b"4")
        self._write(
            _header(
                name,
                type,
                stat.S_IMODE(status.st_mode) if mode is None else mode,
                uid,
                gid,
                size,
                time,
                link,
                (os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
            )
        )
        self.entries += 1

    def _content(self, path: bytes, size: int) -> None:
        left = size
        with open(path, "rb", buffering=0) as file:
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise ImageError(f"{os.fsdecode(path)!r} became shorter while it was packed", kind="ImageExport")
                self._write(piece)
                left -= len(piece)
        self._write(bytes(-size % BLOCK))

    def _write(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += len(data)
        self._out.write(data)


def _record(key: bytes, value: bytes) -> bytes:
    """One line of an extended header, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _header(
    name: bytes,
    type: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    time: int,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """A header of POSIX's ustar form; what is too large for it stands in an extended one and is 0 here."""
    numbers = (
        b"%07o\0" % mode,
        b"%07o\0" % (uid if uid < _MAX_OCTAL else 0),
        b"%07o\0" % (gid if gid < _MAX_OCTAL else 0),
        b"%011o\0" % (size if size < _MAX_SIZE else 0),
        b"%011o\0" % (time if 0 <= time < _MAX_SIZE else 0),
    )
    head = name[:100].ljust(100, b"\0") + b"".join(numbers)
    tail = type + link[:100].ljust(100, b"\0") + b"ustar\x0000" + bytes(64)
    tail += b"%07o\0%07o\0" % device
    block = (head + b" " * 8 + tail).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
