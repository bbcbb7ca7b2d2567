"""Unpacking one layer of an image into a tree in the form of overlayfs. Everything here blocks.

A layer comes from strangers. No entry reaches anything outside the tree, whatever it is called and wherever links
lead; what is refused is refused before it is written, and the caller throws the tree away then. See the OCI image
specification, "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from typing import TYPE_CHECKING, Final

import attrs

from .compression import TarStream
from .errors import ImageError
from .merged import OPAQUE, Directory, Kind, MergedTree
from .tar_headers import BoundedInfo, HeaderStream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .compression import Reader

__all__ = ["UnpackLimits", "Unpacked", "unpack_layer"]

MAX_PATH: Final = 3500
"""Bytes of a path in an image; with the directory it is unpacked in, it must fit into what the kernel takes."""
MAX_NAME: Final = 255
MAX_MAJOR: Final = 0xFFF
MAX_MINOR: Final = 0xFFFFF
"""Numbers of devices: the kernel would cut off what is above them, and 4096:0 would be 0:0, a hole."""
MAX_NOTES: Final = 20
OVERHEAD: Final = 64 << 20
"""Bytes that headers and padding may add to the content."""
_BLOCK: Final = 1 << 20
_WHITEOUT: Final = ".wh."
_OPAQUE_MARK: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."
"""How the directories begin in which aufs, an older union file system, kept what it had to know."""
_ATTRIBUTE: Final = "SCHILY.xattr."
_OVERLAY: Final = ("user.overlay.", "trusted.overlay.")
"""Attributes that overlayfs obeys."""
_TRUSTED: Final = "trusted."
"""Attributes that nobody in a sandbox could see or remove."""
_LATEST: Final = 1 << 33
"""Seconds; file systems know no later time."""
_THEIR_FAULT: Final = {
    errno.ENAMETOOLONG: "a path, or the target of a link, is too long once all links on it are followed",
    errno.EMLINK: "a file has more links than the file system can have",
    errno.EACCES: "an ordinary user may not do what it needs; run the server as root",
    errno.EPERM: "an ordinary user may not do what it needs; run the server as root",
}
"""What the system says of a layer, rather than of the disk."""
_DENIED: Final = (errno.EACCES, errno.EPERM)
"""Of root these say something of the disk."""


@attrs.frozen(kw_only=True)
class UnpackLimits:
    """How much may be unpacked."""

    max_bytes: int
    """Content of files, in bytes."""
    max_entries: int = 2_000_000

    @property
    def archive_bytes(self) -> int:
        """How long an archive of so much may be."""
        return self.max_bytes + OVERHEAD + 1536 * min(self.max_entries, 1_000_000)


@attrs.frozen(kw_only=True)
class Unpacked:
    """What was unpacked."""

    diff_id: str
    size_bytes: int
    entries: int
    notes: tuple[str, ...] = ()
    """What could not be made as it was meant."""


def unpack_layer(
    source: Reader,
    tree: Path,
    lowers: Sequence[Path],
    *,
    limits: UnpackLimits,
    owner: int = 0,
    name: str = "the layer",
) -> Unpacked:
    """Unpack a layer, compressed or not, into `tree`, an empty directory.

    `lowers` are the trees of the layers below, topmost first. `owner` is added to all ids; an ordinary user owns
    everything. `name` is what errors call the layer.

    Raises ImageError for what is no layer, is hostile, or is over a limit; OSError when the disk is full or fails.
    """
    with TarStream(source, name=name, max_bytes=limits.archive_bytes) as stream:
        unpacker = _Unpacker(stream, str(tree), [str(lower) for lower in lowers], limits, owner)
        try:
            unpacker.run()
        except ImageError as error:
            raise error if str(error).startswith(name) else ImageError(f"{name}: {error}", kind=error.kind) from error
        except (tarfile.TarError, ValueError) as error:
            raise ImageError(f"{name}: it is no tar archive: {error}", kind="ImageUnpack") from error
        except OSError as error:
            if error.errno not in _THEIR_FAULT or (error.errno in _DENIED and os.geteuid() == 0):
                raise
            reason, path = _THEIR_FAULT[error.errno], str(error.filename)[-120:]
            raise ImageError(f"{name}: {reason} (...{path!r})", kind="ImageUnpack") from error
        return Unpacked(
            diff_id=stream.digest, size_bytes=unpacker.size, entries=unpacker.entries, notes=tuple(unpacker.notes)
        )


class _Unpacker:
    def __init__(self, stream: TarStream, tree: str, lowers: list[str], limits: UnpackLimits, owner: int) -> None:
        self._stream = stream
        self._limits = limits
        self._owner = owner
        self._is_root = os.geteuid() == 0
        self._headers = HeaderStream(stream)
        self._merged = MergedTree(tree, lowers, self._make_directory)
        self._times: dict[str, tuple[int, int | None]] = {}
        """Modes and times of directories, which are set when nothing is put into them any more."""
        self.size = 0
        self.entries = 0
        self.notes: list[str] = []

    def run(self) -> None:
        """Unpack everything."""
        with tarfile.TarFile(
            fileobj=self._headers,  # type: ignore[arg-type]  # it reads forwards only, which is all that is done
            tarinfo=BoundedInfo,
            errors="surrogateescape",
        ) as archive:
            remembered: list[tarfile.TarInfo] = vars(archive)["members"]  # it would keep all of them
            while (member := archive.next()) is not None:
                remembered.clear()
                self.entries += 1
                if self.entries > self._limits.max_entries:
                    raise ImageError(
                        f"there are more than {self._limits.max_entries:,} files in it", kind="ImageTooLarge"
                    )
                self._unpack(archive, member)
                self._headers.next_entry()
        self._stream.finish()
        for path, (mode, time) in reversed(self._times.items()):
            os.chmod(path, mode)
            if time is not None:
                os.utime(path, ns=(time, time))

    def _unpack(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        way = _clean(member.name)
        folder, _, name = way.rpartition("/")
        if not name:
            if member.isdir():
                self._describe_directory(self._merged.root, member)
            return
        if way.startswith(_AUFS) and way != _OPAQUE_MARK:
            self._note(f"{way!r} is of aufs, which had it for itself")
            return
        parent = self._merged.directory(folder)
        if name == _OPAQUE_MARK:
            self._hide_all(parent)
        elif name.startswith(_WHITEOUT):
            self._hide(parent, name.removeprefix(_WHITEOUT))
        elif member.isdir():
            self._directory(parent, name, member)
        else:
            self._other(archive, parent, name, member)

    # What hides.

    def _hide_all(self, directory: Directory) -> None:
        if directory.parent is None:  # the kernel does not look at the attribute of a root
            for name in sorted({name for folder in directory.below for name in os.listdir(folder)}):
                self._hide(directory, name)
            return
        if directory.below or directory.own:
            self._merged.make(directory)
            directory.opaque = True
            directory.hide_below()
            os.setxattr(directory.path, OPAQUE, b"y")

    def _hide(self, parent: Directory, name: str) -> None:
        if name in ("", ".", "..") or name.startswith(_WHITEOUT):
            raise ImageError(f"there is no name in {_WHITEOUT + name!r} that it could hide", kind="ImageUnpack")
        lower = self._merged.lower(parent, name)
        if lower is None:
            return
        parent.hidden.add(name)
        kind = parent.entries.get(name)
        if kind is Kind.DIRECTORY:
            directory = parent.directories[name]
            directory.hide_below()
            os.setxattr(directory.path, OPAQUE, b"y")
        elif kind is None:
            parent.directories.pop(name, None)
            self._merged.make(parent)
            os.mknod(f"{parent.path}/{name}", stat.S_IFCHR, os.makedev(0, 0))
            parent.entries[name] = Kind.WHITEOUT
        self._merged.forget_ways()

    # What is there.

    def _directory(self, parent: Directory, name: str, member: tarfile.TarInfo) -> None:
        kind = parent.entries.get(name)
        if kind in (Kind.LINK, Kind.OTHER):
            os.unlink(f"{parent.path}/{name}")
            del parent.entries[name]
            self._merged.forget_ways()
            if self._merged.lower(parent, name) is not None:  # What had taken its place is gone, and so is it.
                parent.hidden.add(name)
        directory = parent.directories.get(name)
        if directory is None:
            below = self._merged.lower_directories(parent, name) if name not in parent.hidden else []
            directory = self._merged.add(parent, name, below)
            self._merged.forget_ways()
        self._merged.make(directory)
        self._describe_directory(directory, member)

    def _describe_directory(self, directory: Directory, member: tarfile.TarInfo) -> None:
        self._set_owner(directory.path, member.uid, member.gid)
        self._set_attributes(directory.path, member)
        self._times[directory.path] = (member.mode & 0o7777, _nanoseconds(member))

    def _make_directory(self, directory: Directory, like: str | None) -> None:
        """Make a directory in the tree, as one below it is, for now with a mode that lets us work in it."""
        os.mkdir(directory.path, 0o700)
        if directory.opaque:
            os.setxattr(directory.path, OPAQUE, b"y")
        if like is None:
            self._set_owner(directory.path, 0, 0)
            self._times[directory.path] = (0o755, None)
            return
        status = os.lstat(like)
        if self._is_root:
            os.chown(directory.path, status.st_uid, status.st_gid)
        for attribute in os.listxattr(like):
            if attribute != OPAQUE:
                os.setxattr(directory.path, attribute, os.getxattr(like, attribute))
        self._times[directory.path] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns)

    def _other(self, archive: tarfile.TarFile, parent: Directory, name: str, member: tarfile.TarInfo) -> None:
        self._merged.make(parent)
        path = f"{parent.path}/{name}"
        self._clear(parent, name)
        kind = Kind.OTHER
        if member.islnk():
            self._hard_link(path, member)
            parent.entries[name] = Kind.LINK if os.path.islink(path) else Kind.OTHER
            return
        if member.isreg() or member.type not in tarfile.SUPPORTED_TYPES:
            self._file(archive, path, member)
        elif member.issym():
            if not member.linkname or "\0" in member.linkname:
                raise ImageError(f"the symbolic link {member.name!r} leads nowhere", kind="ImageUnpack")
            os.symlink(member.linkname, path)
            kind = Kind.LINK
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif not self._device(path, member):
            return
        parent.entries[name] = kind
        self._set_owner(path, member.uid, member.gid)
        self._set_attributes(path, member)  # while an ordinary user may still write to it
        if kind is not Kind.LINK:
            os.chmod(path, member.mode & 0o7777)
        time = _nanoseconds(member)
        os.utime(path, ns=(time, time), follow_symlinks=False)

    def _clear(self, parent: Directory, name: str) -> None:
        """Make room for something that is no directory."""
        kind = parent.entries.pop(name, None)
        if kind is Kind.DIRECTORY:
            directory = parent.directories[name]
            self._remove_own(directory)
        elif kind is not None:
            os.unlink(f"{parent.path}/{name}")
        if parent.directories.pop(name, None) is not None or kind is Kind.LINK:
            self._merged.forget_ways()
        else:
            self._merged.replaced(f"{parent.path}/{name}")

    def _remove_own(self, directory: Directory) -> None:
        """Remove a directory of the tree, the deepest first."""
        waiting, order = [directory], []
        while waiting:
            here = waiting.pop()
            if here.own:
                order.append(here)
                waiting += here.directories.values()
        for here in reversed(order):
            for name, kind in here.entries.items():
                if kind is not Kind.DIRECTORY:
                    os.unlink(f"{here.path}/{name}")
            os.rmdir(here.path)
            self._times.pop(here.path, None)

    def _file(self, archive: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
        left = member.size
        if left < 0:
            raise ImageError(f"{member.name!r} has {left:,} bytes", kind="ImageUnpack")
        self.size += left
        if self.size > self._limits.max_bytes:
            raise ImageError(
                f"its files hold more than the {self._limits.max_bytes:,} bytes that there is room for",
                kind="ImageTooLarge",
            )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if member.issparse():
                self._sparse(archive, descriptor, member)
                return
            while left:
                piece = self._stream.read_some(min(left, _BLOCK))
                if not piece:
                    raise ImageError(f"it ends in the middle of {member.name!r}", kind="ImageUnpack")
                left -= len(piece)
                while piece:
                    piece = piece[os.write(descriptor, piece) :]
        finally:
            os.close(descriptor)

    def _sparse(self, archive: tarfile.TarFile, descriptor: int, member: tarfile.TarInfo) -> None:
        content = archive.extractfile(member)
        assert content is not None
        self._headers.in_content()
        at = 0
        while piece := content.read(_BLOCK):
            if piece.count(0) != len(piece):
                os.pwrite(descriptor, piece, at)
            at += len(piece)
        os.ftruncate(descriptor, member.size)

    def _hard_link(self, path: str, member: tarfile.TarInfo) -> None:
        folder, _, name = _clean(member.linkname).rpartition("/")
        parent = self._merged.directory(folder)
        target = f"{parent.path}/{name}"
        if parent.entries.get(name) not in (Kind.LINK, Kind.OTHER):
            lower = self._merged.lower(parent, name) if name and name not in parent.entries else None
            if lower is None or (os.path.isdir(lower) and not os.path.islink(lower)):
                raise ImageError(
                    f"{member.name!r} is a link to {member.linkname!r}, which is not there", kind="ImageUnpack"
                )
            self._merged.make(parent)
            self._copy_up(lower, target)
            parent.entries[name] = Kind.LINK if os.path.islink(target) else Kind.OTHER
        if path == target:
            raise ImageError(f"{member.name!r} is a link to itself", kind="ImageUnpack")
        os.link(target, path, follow_symlinks=False)

    def _copy_up(self, lower: str, path: str) -> None:
        """Bring a file of a lower layer into the tree, as it is."""
        status = os.lstat(lower)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(lower), path)
        elif stat.S_ISREG(status.st_mode):
            self.size += status.st_size
            if self.size > self._limits.max_bytes:
                raise ImageError("links into lower layers make it too large", kind="ImageTooLarge")
            with open(lower, "rb", buffering=0) as source, open(path, "xb", buffering=0) as target:
                while os.sendfile(target.fileno(), source.fileno(), None, _BLOCK):
                    pass
        else:
            os.mknod(path, status.st_mode, status.st_rdev)
        if self._is_root:
            os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode))
        for attribute in os.listxattr(lower, follow_symlinks=False):
            os.setxattr(path, attribute, os.getxattr(lower, attribute, follow_symlinks=False), follow_symlinks=False)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)

    def _device(self, path: str, member: tarfile.TarInfo) -> bool:
        if member.ischr() and member.devmajor == member.devminor == 0:
            raise ImageError(f"{member.name!r} is the device 0:0, which would hide a file", kind="ImageUnpack")
        if not (0 <= member.devmajor <= MAX_MAJOR and 0 <= member.devminor <= MAX_MINOR):
            number = f"{member.devmajor}:{member.devminor}"
            raise ImageError(f"{member.name!r} is the device {number}, which there cannot be", kind="ImageUnpack")
        if not self._is_root:
            self._note(f"{member.name!r} is a device, which only root can make")
            return False
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        try:
            os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
        except OSError as error:
            self._note(f"the device {member.name!r} cannot be made: {error}")
            return False
        return True

    def _set_owner(self, path: str, uid: int, gid: int) -> None:
        if self._is_root:
            if not (0 <= uid < 2**32 - 1 - self._owner and 0 <= gid < 2**32 - 1 - self._owner):
                raise ImageError(f"{path!r} is to belong to user {uid} and group {gid}", kind="ImageUnpack")
            os.chown(path, uid + self._owner, gid + self._owner, follow_symlinks=False)

    def _set_attributes(self, path: str, member: tarfile.TarInfo) -> None:
        for key, text in member.pax_headers.items():
            if not key.startswith(_ATTRIBUTE):
                continue
            attribute = key.removeprefix(_ATTRIBUTE)
            if attribute.startswith(_OVERLAY):
                raise ImageError(
                    f"{member.name!r} has the attribute {attribute!r}, which is the kernel's", kind="ImageUnpack"
                )
            if attribute.startswith(_TRUSTED):
                self._note(f"{member.name!r} has the attribute {attribute!r}, which is left out")
                continue
            try:
                os.setxattr(path, attribute, text.encode("utf-8", "surrogateescape"), follow_symlinks=False)
            except OSError as error:
                self._note(f"{member.name!r} cannot have the attribute {attribute!r}: {error.strerror}")

    def _note(self, sentence: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(sentence)


def _clean(name: str) -> str:
    """A path in an image, relative to its root, without what means nothing."""
    if len(os.fsencode(name)) > MAX_PATH or "\0" in name:
        raise ImageError(f"the path {name[:80]!r}... is too long, or has a NUL", kind="ImageUnpack")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    for part in parts:
        if part == "..":
            raise ImageError(f"the path {name!r} leads upwards", kind="ImageUnpack")
        if len(os.fsencode(part)) > MAX_NAME:
            raise ImageError(f"the path {name[:80]!r}... has a name of more than {MAX_NAME} bytes", kind="ImageUnpack")
    return "/".join(parts)


def _nanoseconds(member: tarfile.TarInfo) -> int:
    time = member.mtime
    text = member.pax_headers.get("mtime")
    if text is not None:
        seconds, _, fraction = text.partition(".")
        try:
            return min(max(int(seconds), -_LATEST), _LATEST) * 10**9 + int((fraction + "0" * 9)[:9])
        except ValueError:
            time = 0
    return int(min(max(time, -_LATEST), _LATEST) * 10**9)
