"""Trees of images as root and as an ordinary user: what is the same, and what differs."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.pack import pack_layer
from sandbox_aio.images.unpack import UnpackLimits, unpack_layer
from tests.images.archives import directory, file, layer, listing, symlink, whiteout

if TYPE_CHECKING:
    from pathlib import Path


def pack(tree: Path) -> bytes:
    out = io.BytesIO()
    pack_layer(tree, out)
    return out.getvalue()


def test_a_layer_is_unpacked_and_packed_alike(tmp_path: Path) -> None:
    lower, tree, again = (tmp_path / name for name in ("lower", "tree", "again"))
    for folder in (lower, tree, again):
        folder.mkdir()
    limits = UnpackLimits(max_bytes=1 << 20)
    unpack_layer(io.BytesIO(layer(file("d/a", "1"), file("e/b", "1"))), lower, [], limits=limits)
    entries = [whiteout("d/a"), file("e/.wh..wh..opq"), file("e/c", "2", mode=0o4711), symlink("l", "d")]
    unpack_layer(io.BytesIO(layer(*entries)), tree, [lower], limits=limits)
    assert listing(tree) == {"d": "/", "d/a": "hidden", "e": "opaque/", "e/c": "2", "l": "-> d"}
    data = pack(tree)
    unpack_layer(io.BytesIO(data), again, [lower], limits=limits)
    assert listing(again) == listing(tree)
    assert pack(again) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {member.name: member for member in archive}
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
    assert members["e/c"].mode == 0o4711


def test_what_only_root_may_read_is_named(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    unpack_layer(
        io.BytesIO(layer(directory("etc"), file("etc/shadow", "x", mode=0))), tree, [],
        limits=UnpackLimits(max_bytes=1 << 20),
    )  # fmt: skip
    assert stat.S_IMODE((tree / "etc/shadow").stat().st_mode) == 0
    if os.geteuid() == 0:
        assert b"etc/shadow" in pack(tree)
    else:
        with pytest.raises(ImageError, match="'etc/shadow' may not be read by an ordinary user") as caught:
            pack(tree)
        assert caught.value.kind == "ImageExport"
