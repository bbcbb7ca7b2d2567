"""Packing trees: what other programs and our own unpacking make of the archive."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.pack import Packed, pack_layer
from sandbox_aio.images.unpack import UnpackLimits, unpack_layer
from tests.images.archives import listing

pytestmark = pytest.mark.root


def pack(tree: Path, owner: int = 0) -> tuple[bytes, Packed]:
    out = io.BytesIO()
    packed = pack_layer(tree, out, owner=owner)
    data = out.getvalue()
    assert packed.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert packed.size_bytes == len(data)
    return data, packed


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


def hole(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One with everything in it."""
    root = tmp_path / "tree"
    (root / "d/empty").mkdir(parents=True)
    (root / "d/file").write_text("text")
    os.chown(root / "d/file", 1000, 3_000_000)
    (root / "d/file").chmod(0o4755)  # which a change of the owner takes away
    os.setxattr(root / "d/file", "user.note", b"\x00\xff=\n")
    os.link(root / "d/file", root / "d/link")
    (root / "d/long").symlink_to("../" * 60 + "x")
    (root / ("n" * 120)).write_bytes(b"x" * 1025)
    (root / "\u00fcml\u00e4ut").write_text("u")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("bytes")
    os.mkfifo(root / "pipe", 0o600)
    os.mknod(root / "device", stat.S_IFBLK | 0o640, os.makedev(7, 300))
    os.utime(root / "d/file", ns=(0, 1_700_000_000_999_999_999))
    os.utime(root / "pipe", ns=(0, -5 * 10**9))
    (root / "opaque").mkdir()
    (root / "opaque/new").write_text("new")
    os.setxattr(root / "opaque", "user.overlay.opaque", b"y")
    hole(root / "gone")
    hole(root / "d/gone")
    return root


def test_our_unpacking_makes_the_same_tree_of_it(tmp_path: Path, tree: Path) -> None:
    lower = tmp_path / "lower"
    for name in ("gone", "d/gone", "opaque/old"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text("below")
    data, _ = pack(tree)
    again = tmp_path / "again"
    again.mkdir()
    done = unpack_layer(io.BytesIO(data), again, [lower], limits=UnpackLimits(max_bytes=1 << 20))
    assert done.notes == ()
    assert listing(again) == listing(tree)
    for name in ("d/file", "d/long", "pipe", "device", "opaque", "d/empty"):
        one, other = (tree / name).lstat(), (again / name).lstat()
        for field in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_size"):
            assert getattr(one, field) == getattr(other, field), (name, field)
        assert one.st_mtime_ns // 10**9 == other.st_mtime_ns // 10**9
    assert (again / "d/file").stat().st_ino == (again / "d/link").stat().st_ino
    assert os.getxattr(again / "d/file", "user.note") == b"\x00\xff=\n"
    assert pack(again)[0] == data


def test_pythons_reader_reads_it(tree: Path) -> None:
    data, packed = pack(tree)
    found = members(data)
    assert len(found) == packed.entries
    assert (found["d/file"].mode, found["d/file"].uid, found["d/file"].gid) == (0o4755, 1000, 3_000_000)
    assert (found["d/link"].type, found["d/link"].linkname) == (tarfile.LNKTYPE, "d/file")
    assert found["d/long"].linkname == "../" * 60 + "x"
    assert found["n" * 120].size == 1025
    assert "\u00fcml\u00e4ut" in found
    assert (found["device"].devmajor, found["device"].devminor) == (7, 300)
    assert {"d/.wh.gone", ".wh.gone", "opaque/.wh..wh..opq"} <= set(found)
    assert not {"gone", "d/gone"} & set(found)
    assert len(data) % 10240 == 0


def test_the_same_tree_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    results = set()
    for number, names in enumerate((("b", "a", "c"), ("c", "b", "a"))):
        root = tmp_path / str(number)
        root.mkdir()
        for name in names:
            (root / name).write_text(name)
            os.utime(root / name, (number, 5))
        results.add(pack(root)[0])
    assert len(results) == 1


def test_ids_are_those_of_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_text("a")
    os.chown(tmp_path / "tree/a", 100_033, 100_000)
    member = members(pack(tmp_path / "tree", owner=100_000)[0])["a"]
    assert (member.uid, member.gid) == (33, 0)
    with pytest.raises(ImageError, match="'a' belongs to nobody"):
        pack(tmp_path / "tree", owner=200_000)


def test_capabilities_of_a_user_namespace_become_roots(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "ping").write_text("")
    words = (1 << 13, 0, 0, 0)
    os.setxattr(tree / "ping", "security.capability", struct.pack("<IIIIII", 0x03000001, *words, 100_000))
    attribute = members(pack(tree)[0])["ping"].pax_headers["SCHILY.xattr.security.capability"]
    assert attribute.encode("utf-8", "surrogateescape") == struct.pack("<IIIII", 0x02000001, *words)


def test_a_socket_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    monkeypatch.chdir(tmp_path / "tree")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    assert members(pack(tmp_path / "tree")[0]) == {}


@pytest.mark.parametrize("name", [".wh.x", "d/.wh..wh..opq"])
def test_a_name_that_would_remove_something_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "tree" / name).parent.mkdir(parents=True)
    (tmp_path / "tree" / name).write_text("")
    with pytest.raises(ImageError, match="marks what is removed") as caught:
        pack(tmp_path / "tree")
    assert caught.value.kind == "ImageExport"


def test_what_only_overlayfs_understands_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree/d").mkdir(parents=True)
    os.setxattr(tmp_path / "tree/d", "user.overlay.redirect", b"/elsewhere")
    with pytest.raises(ImageError, match="no archive can say"):
        pack(tmp_path / "tree")


def test_a_file_of_many_gigabytes_has_its_size(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "large").open("wb") as file:
        file.truncate((8 << 30) + 1)

    class StopError(Exception):
        pass

    class Head:
        data = b""

        def write(self, data: bytes) -> int:
            self.data += data
            if len(self.data) > 1 << 20:
                raise StopError
            return len(data)

    head = Head()
    with pytest.raises(StopError):
        pack_layer(tree, head)
    with tarfile.open(fileobj=io.BytesIO(head.data[:1536] + bytes(1024)), mode="r|") as archive:
        member = archive.next()
    assert member is not None
    assert member.size == (8 << 30) + 1


def test_an_attribute_that_an_archive_would_misread_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").touch()
    os.setxattr(tmp_path / "tree/a", "user.b=c", b"d")
    with pytest.raises(ImageError, match=r"'user\.b=c', which no archive can say"):
        pack_layer(tmp_path / "tree", io.BytesIO())
