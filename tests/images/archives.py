"""Layers for tests, written entry by entry, and what is in a tree afterwards."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

__all__ = ["Entry", "directory", "file", "hard_link", "layer", "listing", "symlink", "whiteout"]


@attrs.frozen
class Entry:
    """One member of an archive; `options` are set on its header."""

    name: str
    kind: bytes = tarfile.REGTYPE
    content: bytes = b""
    options: Mapping[str, Any] = attrs.field(factory=dict)


def file(name: str, content: str = "", **options: Any) -> Entry:
    return Entry(name, tarfile.REGTYPE, content.encode(), options)


def directory(name: str, **options: Any) -> Entry:
    return Entry(name, tarfile.DIRTYPE, b"", {"mode": 0o755, **options})


def symlink(name: str, target: str, **options: Any) -> Entry:
    return Entry(name, tarfile.SYMTYPE, b"", {"linkname": target, **options})


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, tarfile.LNKTYPE, b"", {"linkname": target})


def whiteout(name: str) -> Entry:
    folder, _, last = name.rpartition("/")
    return file(f"{folder}/.wh.{last}".lstrip("/"))


def layer(*entries: Entry, compress: bool = True) -> bytes:
    """The archive of these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.size, info.mode = entry.kind, len(entry.content), 0o644
            for name, value in entry.options.items():
                setattr(info, name, value)
            archive.addfile(info, io.BytesIO(entry.content))
    return gzip.compress(buffer.getvalue(), mtime=0) if compress else buffer.getvalue()


def listing(tree: Path) -> dict[str, str]:
    """What is in a tree: text of files, `-> target` of links, `/` for directories, `opaque/`, `hidden` for holes."""
    found = {}
    for folder, directories, files in os.walk(tree):
        for name in (*directories, *files):
            path = Path(folder, name)
            found[str(path.relative_to(tree))] = _describe(path)
    return found


def _describe(path: Path) -> str:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"-> {path.readlink()}"
    if stat.S_ISDIR(status.st_mode):
        return "opaque/" if "user.overlay.opaque" in os.listxattr(path) else "/"
    if stat.S_ISCHR(status.st_mode):
        return "hidden" if status.st_rdev == 0 else "device"
    return path.read_text() if stat.S_ISREG(status.st_mode) else "other"
