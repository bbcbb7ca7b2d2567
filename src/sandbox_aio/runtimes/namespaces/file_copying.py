"""Copying what one file or directory holds, and what is noted on it."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["copy_attributes", "copy_content", "read_attributes", "write_attributes"]

_BLOCK: Final = 1 << 24
_OPAQUE: Final = "user.overlay.opaque"
_NESTED: Final = "user.overlay.overlay."
"""What an overlay that was mounted in the sandbox notes, as the sandbox's own overlay keeps it."""
_CAPABILITY: Final = "security.capability"
_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")
_REVISION: Final = 0xFF_00_00_00
_REVISION_2: Final = 0x02_00_00_00
_REVISION_3: Final = 0x03_00_00_00
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_IDS: Final = 65_536


def copy_content(source: int, target: int, size: int, checkpoint: Callable[[], None]) -> None:
    """Copy data, and leave holes where there are holes; share blocks where the file system can.

    `checkpoint` is called between blocks, and may raise. Raises OSError.
    """
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        left = end - start
        while left > 0 and (done := _copy_block(source, target, min(left, _BLOCK))):
            left -= done
            checkpoint()
        if left > 0:
            break  # It became shorter meanwhile.
        checkpoint()
        at = end
    os.ftruncate(target, size)


def _copy_block(source: int, target: int, size: int) -> int:
    try:
        return os.copy_file_range(source, target, size)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return os.sendfile(target, source, None, size)


def copy_attributes(source: int, target: int, offset: int) -> None:
    """Copy the extended attributes of a file to one that has none. Raises OSError."""
    write_attributes(target, read_attributes(source, offset))


def read_attributes(source: int, offset: int) -> dict[str, bytes]:
    """Read the extended attributes that a layer has, with `offset` taken from the ids in them. Raises OSError.

    What overlayfs notes for itself says where a file was copied from, and is true of the sandbox only; but that a
    directory hides those below it is content.
    """
    found: dict[str, bytes] = {}
    for name in os.listxattr(source):
        if name.startswith("trusted.") or (
            name.startswith("user.overlay.") and name != _OPAQUE and not name.startswith(_NESTED)
        ):
            continue
        try:
            value = os.getxattr(source, name)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENODATA, errno.EOPNOTSUPP):
                raise
        else:
            found[name] = _translated(name, value, offset) if offset else value
    return found


def write_attributes(target: int, wanted: Mapping[str, bytes]) -> None:
    """Give a file exactly these attributes, as far as this process may. Raises OSError."""
    for name in os.listxattr(target):
        if name not in wanted and (name.startswith("user.") or name in (_CAPABILITY, *_ACLS)):
            os.removexattr(target, name)
    for name, value in wanted.items():
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
                raise


def _translated(name: str, value: bytes, offset: int) -> bytes:
    if name == _CAPABILITY:
        return _translated_capability(value, offset)
    return _translated_acl(value, offset) if name in _ACLS else value


def _translated_capability(value: bytes, offset: int) -> bytes:
    """Capabilities name the root of the user namespace that they hold in; those of root itself name nobody."""
    if len(value) != 24:
        return value
    magic, *data, root = struct.unpack("<6I", value)
    if magic & _REVISION != _REVISION_3 or not 0 <= root - offset < _IDS:
        return value
    if root == offset:
        return struct.pack("<5I", magic & ~_REVISION | _REVISION_2, *data)
    return struct.pack("<6I", magic, *data, root - offset)


def _translated_acl(value: bytes, offset: int) -> bytes:
    """An access control list, as the kernel hands it out: a version, and entries of a tag, permissions and an id."""
    entries = [value[:4]]
    for tag, permissions, id in struct.iter_unpack("<HHI", value[4:]):
        named = tag in (_ACL_USER, _ACL_GROUP) and 0 <= id - offset < _IDS
        entries.append(struct.pack("<HHI", tag, permissions, id - offset if named else id))
    return b"".join(entries)
