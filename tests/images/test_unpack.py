"""Unpacking layers: what the specification says of them, and what strangers may try."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.unpack import MAX_PATH, Unpacked, UnpackLimits, unpack_layer
from tests.images.archives import Entry, directory, file, hard_link, layer, listing, symlink, whiteout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OPAQUE = ".wh..wh..opq"


def unpack(data: bytes, tree: Path, lowers: Sequence[Path] = (), **limits: int) -> Unpacked:
    tree.mkdir(parents=True)
    return unpack_layer(io.BytesIO(data), tree, lowers, limits=UnpackLimits(**{"max_bytes": 1 << 20, **limits}))


def stack(tmp_path: Path, *layers: Sequence[Entry]) -> list[dict[str, str]]:
    """Unpack layers over one another, the lowest first; return what each of them holds."""
    trees: list[Path] = []
    for number, entries in enumerate(layers):
        tree = tmp_path / str(number)
        unpack(layer(*entries), tree, trees)
        trees.insert(0, tree)
    return [listing(tree) for tree in reversed(trees)]


def test_files_directories_and_links(tmp_path: Path) -> None:
    data = layer(
        directory("./etc/", mode=0o750),
        file("etc/passwd", "root", mode=0o640, mtime=1_700_000_000.25),
        symlink("etc/mtab", "../proc/mounts"),
        hard_link("etc/copy", "/etc/passwd"),
        file("/absolute", "is inside"),
        Entry("run/pipe", tarfile.FIFOTYPE),
    )
    done = unpack(data, tmp_path / "tree")
    tree = tmp_path / "tree"
    assert listing(tree) == {
        "etc": "/", "etc/passwd": "root", "etc/copy": "root", "etc/mtab": "-> ../proc/mounts", "absolute": "is inside",
        "run": "/", "run/pipe": "other",
    }  # fmt: skip
    assert stat.S_IMODE((tree / "etc").stat().st_mode) == 0o750
    assert (tree / "etc/passwd").stat().st_mtime == 1_700_000_000.25
    assert (tree / "etc/passwd").stat().st_nlink == 2
    assert (done.entries, done.size_bytes, done.notes) == (6, 13, ())
    assert done.diff_id == "sha256:" + hashlib.sha256(gzip.decompress(data)).hexdigest()


def test_an_archive_may_be_gzipped_in_parts_or_not_at_all(tmp_path: Path) -> None:
    plain = layer(file("a", "x" * 5000), compress=False)
    parts = gzip.compress(plain[:700]) + gzip.compress(plain[700:]) + bytes(100)
    assert unpack(plain, tmp_path / "1") == unpack(parts, tmp_path / "2")
    assert listing(tmp_path / "2") == {"a": "x" * 5000}


def test_whiteouts_hide_what_is_below_and_nothing_else(tmp_path: Path) -> None:
    _, upper = stack(
        tmp_path,
        [file("d/a", "1"), file("d/b", "1"), file("e/c", "1")],
        [whiteout("d/a"), whiteout("d/nothing"), whiteout("e"), whiteout("nowhere/at/all")],
    )
    assert upper == {"d": "/", "d/a": "hidden", "e": "hidden"}


@pytest.mark.parametrize("late", [False, True])
def test_what_a_layer_adds_is_not_what_it_hides_in_any_order(tmp_path: Path, late: bool) -> None:
    entries = [whiteout("d"), file("d/new", "2"), whiteout("f"), file("f", "2")]
    if late:
        entries.reverse()
    _, upper = stack(tmp_path, [file("d/old", "1"), file("f", "1")], entries)
    assert upper == {"d": "opaque/", "d/new": "2", "f": "2"}


@pytest.mark.parametrize("late", [False, True])
def test_an_opaque_directory_shows_nothing_from_below(tmp_path: Path, late: bool) -> None:
    entries = [file(f"d/{OPAQUE}"), file("d/new", "2")]
    if late:
        entries.reverse()
    _, upper, top = stack(tmp_path, [file("d/sub/old", "1")], entries, [file("d/sub/x", "3"), whiteout("d/old")])
    assert upper == {"d": "opaque/", "d/new": "2"}
    assert top == {"d": "/", "d/sub": "/", "d/sub/x": "3"}


def test_an_opaque_root_hides_every_name_below(tmp_path: Path) -> None:
    _, upper = stack(tmp_path, [file("a", "1"), file("d/b", "1"), file("k", "1")], [file(OPAQUE), file("a", "2")])
    assert upper == {"a": "2", "d": "hidden", "k": "hidden"}


def test_a_path_through_a_link_of_a_lower_layer_arrives_where_it_leads(tmp_path: Path) -> None:
    _, upper = stack(
        tmp_path,
        [directory("usr/bin"), symlink("bin", "usr/bin"), symlink("deep", "/bin/../../../usr/./bin")],
        [file("bin/tool", "2"), file("deep/other", "2"), hard_link("bin/alias", "deep/tool"), whiteout("bin/none")],
    )
    assert upper == {"usr": "/", "usr/bin": "/", "usr/bin/tool": "2", "usr/bin/other": "2", "usr/bin/alias": "2"}


def test_links_that_lead_out_stay_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree,) = stack(
        tmp_path / "in",
        [symlink("abs", str(outside)), file("abs/x", "1"), symlink("rel", "../../../../.."), file("rel/y", "2")],
    )
    inside = str(outside).lstrip("/")
    assert list(outside.iterdir()) == []
    assert tree[f"{inside}/x"] == "1"
    assert tree["y"] == "2"


def test_directories_that_are_only_implied_look_like_those_below(tmp_path: Path) -> None:
    stack(tmp_path, [directory("d", mode=0o1711, mtime=1000), directory("d/e", mode=0o700)], [file("d/e/f", "2")])
    status = (tmp_path / "1/d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o1711, 1000)
    assert stat.S_IMODE((tmp_path / "1/d/e").stat().st_mode) == 0o700


def test_a_hard_link_into_a_lower_layer_brings_its_file_up(tmp_path: Path) -> None:
    _, upper = stack(tmp_path, [file("a/x", "low", mode=0o600, mtime=5)], [hard_link("b/y", "a/x")])
    assert upper == {"a": "/", "a/x": "low", "b": "/", "b/y": "low"}
    status = (tmp_path / "1/a/x").stat()
    assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_mtime) == (2, 0o600, 5)


def test_a_name_may_become_something_else(tmp_path: Path) -> None:
    (tree,) = stack(
        tmp_path,
        [
            file("a", "1"), directory("a"), file("a/x", "2"),
            directory("b/c"), file("b/c/y", "3"), file("b", "4"),
            symlink("c", "a"), directory("c"), file("c/z", "5"),
            file("d", "6"), file("d", "7"),
        ],
    )  # fmt: skip
    assert tree == {"a": "/", "a/x": "2", "b": "4", "c": "/", "c/z": "5", "d": "7"}


def test_names_that_differ_in_case_are_different(tmp_path: Path) -> None:
    (tree,) = stack(tmp_path, [file("A/x", "1"), file("a/x", "2"), symlink("B", "/A"), file("b/y", "3")])
    assert tree == {"A": "/", "A/x": "1", "a": "/", "a/x": "2", "B": "-> /A", "b": "/", "b/y": "3"}


def test_attributes_and_sparse_files(tmp_path: Path) -> None:
    headers = {"pax_headers": {"SCHILY.xattr.user.colour": "blue", "SCHILY.xattr.nonsense": "x"}}
    done = unpack(layer(file("a", "x", **headers)), tmp_path / "tree")
    assert os.getxattr(tmp_path / "tree/a", "user.colour") == b"blue"
    assert len(done.notes) == 1 and "'nonsense'" in done.notes[0]


@pytest.mark.root
def test_owners_devices_and_special_bits_for_root(tmp_path: Path) -> None:
    unpack(
        layer(
            file("su", "x", mode=0o4755, uid=33, gid=44),
            Entry("dev/null", tarfile.CHRTYPE, b"", {"devmajor": 1, "devminor": 3}),
            directory("home", uid=1000, gid=1000),
            symlink("home/l", "x", uid=1000, gid=7),
        ),
        tmp_path / "tree",
    )
    status = (tmp_path / "tree/su").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 33, 44)
    assert (tmp_path / "tree/dev/null").stat().st_rdev == os.makedev(1, 3)
    assert (tmp_path / "tree/home/l").lstat().st_gid == 7


HOSTILE: dict[str, tuple[list[Entry], str]] = {
    "up": ([file("../x")], "leads upwards"),
    "up in the middle": ([file("a/../../x")], "leads upwards"),
    "link up": ([file("a"), hard_link("b", "../../etc/passwd")], "leads upwards"),
    "hard link to nothing": ([hard_link("b", "etc/passwd")], "which is not there"),
    "hard link to a directory": ([directory("a"), hard_link("b", "a")], "which is not there"),
    "hard link to itself": ([file("a"), hard_link("a", "a")], "not there|itself"),
    "through a file": ([file("a"), file("a/b")], "no directory"),
    "link loop": ([symlink("a", "b"), symlink("b", "a"), file("a/x")], "too many symbolic links"),
    "link to nowhere": ([symlink("a", "")], "leads nowhere"),
    "long path": ([file("/".join(["x" * 200] * (MAX_PATH // 200 + 1)))], "too long"),
    "long name": ([file("y" * 256)], "more than 255"),
    "a hole by itself": ([Entry("a", tarfile.CHRTYPE, b"", {"devmajor": 0, "devminor": 0})], "0:0"),
    "a whiteout of nothing": ([file("d/.wh.")], "no name"),
    "a whiteout of above": ([file("d/.wh...")], "no name"),
    "overlay's own attribute": (
        [file("a", pax_headers={"SCHILY.xattr.user.overlay.redirect": "/etc"})],
        "user.overlay.redirect",
    ),
    "trusted overlay": ([file("a", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"})], "trusted.overlay"),
    "a huge file": ([file("a", "x" * (1 << 20)), file("b", "y")], "1,048,576 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_by_name(tmp_path: Path, name: str) -> None:
    entries, reason = HOSTILE[name]
    with pytest.raises(ImageError, match=reason) as caught:
        unpack(layer(*entries), tmp_path / "a/b/tree")
    assert str(caught.value).startswith("the layer: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["tree"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no tar archive|ends"),
        (b"nonsense" * 1000, "no tar archive"),
        (layer(file("a", "x" * 3000))[:-20], "ends in the middle|decompressed"),
        (layer(file("a", "x" * 3000)) + b"garbage", "decompressed"),
        (layer(file("a"), compress=False) + b"\1" * 512, "behind the end"),
        (layer(file("a", "x" * 3000), compress=False)[:1500], "in the middle"),
        (b"\x28\xb5\x2f\xfd" + b"\0" * 100, "zstd|decompressed|empty file"),
    ],
)
def test_what_is_no_layer_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        unpack(data, tmp_path / "tree")


def test_a_bomb_in_size_stops_while_it_unpacks(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(256 << 20), compresslevel=1)
    info = tarfile.TarInfo("zeros")
    info.size = 256 << 20
    with pytest.raises(ImageError, match="room for") as caught:
        unpack(gzip.compress(info.tobuf()) + bomb, tmp_path / "tree")
    assert caught.value.kind == "ImageTooLarge"
    assert listing(tmp_path / "tree") == {}


def test_a_bomb_in_count_stops(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than 10 files"):
        unpack(layer(*(file(str(number)) for number in range(11))), tmp_path / "tree", max_entries=10)


def test_a_header_that_wants_memory_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with pytest.raises(ImageError, match="announces 8,589,934,592 bytes"):
        unpack(header.tobuf(format=tarfile.GNU_FORMAT), tmp_path / "tree")
