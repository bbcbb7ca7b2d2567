"""Layers that are made to confuse: what is lost, what is too much, and what a path is after something was replaced."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.images import merged
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.unpack import MAX_MAJOR, MAX_MINOR, Unpacked, UnpackLimits, unpack_layer
from tests.images.archives import Entry, directory, file, hard_link, layer, listing, symlink, whiteout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def unpack(data: bytes, tree: Path, lowers: Sequence[Path] = (), *, room: int = 1 << 20) -> Unpacked:
    tree.mkdir(parents=True)
    return unpack_layer(io.BytesIO(data), tree, lowers, limits=UnpackLimits(max_bytes=room))


def stack(tmp_path: Path, *layers: Sequence[Entry]) -> list[dict[str, str]]:
    trees: list[Path] = []
    for number, entries in enumerate(layers):
        tree = tmp_path / str(number)
        unpack(layer(*entries), tree, trees)
        trees.insert(0, tree)
    return [listing(tree) for tree in reversed(trees)]


def extended(member: bytes, **records: str) -> bytes:
    """A member whose extended header says something else than its own."""
    body = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        length = len(line) + len(str(len(line) + 2))
        body += str(length).encode() + line
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(body)
    return header.tobuf() + body + bytes(-len(body) % 512) + member


LOWER = [directory("usr/bin"), directory("other"), symlink("bin", "usr/bin")]


def test_a_link_of_a_lower_layer_that_is_replaced_is_followed_no_more(tmp_path: Path) -> None:
    _, upper = stack(tmp_path, LOWER, [file("bin/x"), symlink("bin", "other"), file("bin/y")])
    assert upper == {"usr": "/", "usr/bin": "/", "usr/bin/x": "", "bin": "-> other", "other": "/", "other/y": ""}


def test_a_file_in_the_place_of_a_link_of_a_lower_layer_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="'bin', which is no directory"):
        stack(tmp_path, LOWER, [file("bin/x"), file("bin"), file("bin/y")])


@pytest.mark.parametrize("hidden", [[whiteout("d")], []])
def test_a_directory_after_a_file_shows_nothing_of_what_the_file_replaced(tmp_path: Path, hidden: list[Entry]) -> None:
    _, upper = stack(tmp_path, [file("d/old")], [*hidden, file("d"), directory("d"), file("d/new")])
    assert upper == {"d": "opaque/", "d/new": ""}


def test_what_aufs_kept_for_itself_is_left_out(tmp_path: Path) -> None:
    data = layer(directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file("a", "y"))
    done = unpack(data, tmp_path / "tree")
    assert listing(tmp_path / "tree") == {"a": "y"}
    assert "'.wh..wh.plnk' is of aufs, which had it for itself" in done.notes


def test_attributes_that_only_the_system_sees_are_left_out(tmp_path: Path) -> None:
    done = unpack(layer(file("a", pax_headers={"SCHILY.xattr.trusted.colour": "blue"})), tmp_path / "tree")
    assert os.listxattr(tmp_path / "tree/a") == []
    assert done.notes == ("'a' has the attribute 'trusted.colour', which is left out",)


def test_attributes_of_files_that_nobody_may_write(tmp_path: Path) -> None:
    """An ordinary user could not set them behind the mode."""
    entry = file("a", mode=0o400, pax_headers={"SCHILY.xattr.user.colour": "blue"})
    assert unpack(layer(entry), tmp_path / "tree").notes == ()
    assert os.getxattr(tmp_path / "tree/a", "user.colour") == b"blue"


def test_a_broken_header_is_not_the_end(tmp_path: Path) -> None:
    data = bytearray(layer(file("a", "1"), symlink("b", "c"), compress=False))
    data[2 * 512 + 148] ^= 1
    with pytest.raises(ImageError, match="a header in it is broken: bad checksum"):
        unpack(bytes(data), tmp_path / "tree")


def test_a_header_that_is_cut_is_not_the_end(tmp_path: Path) -> None:
    data = layer(file("a", "1"), symlink("b", "c"), compress=False)[: 2 * 512 + 100]
    with pytest.raises(ImageError, match="a header in it is broken: truncated header"):
        unpack(data, tmp_path / "tree")


def test_a_size_below_nothing_is_refused(tmp_path: Path) -> None:
    data = extended(tarfile.TarInfo("n").tobuf(), size="-100000") + bytes(1 << 20)
    with pytest.raises(ImageError, match=r"'n' has -100,000 bytes|points backwards"):
        unpack(data, tmp_path / "tree")


@pytest.mark.parametrize("number", [(MAX_MAJOR + 1, 0), (0, MAX_MINOR + 1)])
def test_a_device_that_the_kernel_would_take_for_a_hole_is_refused(tmp_path: Path, number: tuple[int, int]) -> None:
    info = tarfile.TarInfo("d")
    info.type, (info.devmajor, info.devminor) = tarfile.CHRTYPE, number
    with pytest.raises(ImageError, match="which there cannot be"):
        unpack(info.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024), tmp_path / "tree")


def test_a_path_that_is_too_long_only_when_links_are_followed(tmp_path: Path) -> None:
    deep = "/".join(["d" * 250] * 13)
    with pytest.raises(ImageError, match="too long once all links"):
        stack(tmp_path, [directory(deep), symlink("l", deep), file(f"l/{deep}/f")])


def test_a_link_whose_target_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="the target of a link, is too long"):
        stack(tmp_path, [symlink("l", "x/" * 2500)])


def test_directories_that_are_only_implied_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "MAX_MODEL", 100_000)
    paths = [f"{number}/" + "x/" * 10 + "f" for number in range(100)]
    with pytest.raises(ImageError, match="too many directories") as caught:
        stack(tmp_path, [file(path) for path in paths])
    assert caught.value.kind == "ImageTooLarge"
    assert sum(len(directories) for _, directories, _ in os.walk(tmp_path)) < 100


def test_more_ways_than_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "MAX_WAYS", 2)
    entries = [symlink(f"l{number}", "d") for number in range(5)] + [file(f"l{number}/{number}") for number in range(5)]
    (tree,) = stack(tmp_path, [directory("d"), *entries])
    assert {f"d/{number}" for number in range(5)} < set(tree)


def test_a_map_of_a_sparse_file_without_end_is_refused(tmp_path: Path) -> None:
    """`tarfile` would keep a hundred bytes for each twenty-four of it, and ask for the next block."""
    header = bytearray(tarfile.TarInfo("s").tobuf(format=tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[482:483] = b"\1"  # The map goes on in the next block.
    header[483:495] = b"%011o\0" % 1
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    block = struct.pack("12s12s", b"%011o\0" % 1, b"%011o\0" % 1) * 21 + b"\1" + bytes(7)
    with pytest.raises(ImageError, match="the headers of an entry are over 8,388,608 bytes"):
        unpack(bytes(header) + block * (20 << 11), tmp_path / "tree", room=64 << 20)


def test_a_sparse_file_of_more_than_headers_may_have(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 9
    header = bytearray(tarfile.TarInfo("s").tobuf(format=tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % len(content)
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0" % 4096 + b"%011o\0" % len(content)
    header[483:495] = b"%011o\0" % (4096 + len(content) + 4096)
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    data = bytes(header) + content + layer(file("after", "x"), compress=False)
    done = unpack(data, tmp_path / "tree", room=16 << 20)
    assert (tmp_path / "tree/s").read_bytes() == bytes(4096) + content + bytes(4096)
    assert done.size_bytes == len(content) + 8193


def test_an_archive_in_very_many_parts(tmp_path: Path) -> None:
    """What is behind a part is not copied once for each of them."""
    plain = layer(file("a", "x" * 5000), compress=False)
    parts = b"".join(gzip.compress(plain[at : at + 40]) + bytes(at % 3) for at in range(0, len(plain), 40))
    unpack(parts + gzip.compress(b"") * 20_000 + bytes(100_000), tmp_path / "tree")
    assert listing(tmp_path / "tree") == {"a": "x" * 5000}


def test_garbage_behind_very_many_parts_is_refused(tmp_path: Path) -> None:
    data = layer(file("a")) + gzip.compress(b"") * 2000 + b"garbage"
    with pytest.raises(ImageError, match="cannot be decompressed"):
        unpack(data, tmp_path / "tree")


def test_a_hard_link_through_a_link_that_leads_out_finds_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ImageError, match="which is not there"):
        stack(tmp_path / "in", [symlink("out", str(tmp_path))], [hard_link("a", "out/secret")])
