"""Removing trees that were made to be hard to remove."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandbox_aio.removal import remove_tree

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tree_deeper_than_paths_descriptors_and_recursion(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    top = here
    try:
        for level in range(3000):
            os.mkdir("directory", dir_fd=here)
            below = os.open("directory", os.O_RDONLY, dir_fd=here)
            if level % 500 == 0:
                os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=below))
            if here != top:
                os.close(here)
            here = below
    finally:
        os.close(here)
        os.close(top)
    remove_tree(str(tmp_path / "directory"))
    assert list(tmp_path.iterdir()) == []


def test_directories_without_permissions(tmp_path: Path) -> None:
    """Trap (d): the overlay's own work/work has mode 000."""
    (tmp_path / "tree/work/work/inside").mkdir(parents=True)
    (tmp_path / "tree/closed/deep").mkdir(parents=True)
    (tmp_path / "tree/closed/deep/file").touch()
    for path in ("work/work/inside", "work/work", "closed/deep", "closed"):
        (tmp_path / "tree" / path).chmod(0)
    remove_tree(str(tmp_path / "tree"))
    assert list(tmp_path.iterdir()) == []


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept/inner").mkdir(parents=True)
    (tmp_path / "kept/file").write_text("kept")
    (tmp_path / "tree/sub").mkdir(parents=True)
    for name, target in (("a", "../kept"), ("sub/b", "../../kept/inner"), ("c", "/nonexistent"), ("sub/loop", ".")):
        (tmp_path / "tree" / name).symlink_to(target)
    remove_tree(str(tmp_path / "tree"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").read_text() == "kept"


def test_odd_names(tmp_path: Path) -> None:
    tree = os.fsencode(tmp_path / "tree")
    os.mkdir(tree)
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b"tree.1", b"x" * 255):
        os.mkdir(tree + b"/" + name)
        with open(tree + b"/" + name + b"/tree.1", "wb"):
            pass
    remove_tree(str(tmp_path / "tree"))
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_exist_is_no_error(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "nothing"))
    remove_tree(str(tmp_path / "no/where"))


def test_what_a_killed_removal_has_left(tmp_path: Path) -> None:
    """It had moved a directory up, and was killed before the one that it came from was empty."""
    (tmp_path / "tree/x/y").mkdir(parents=True)
    (tmp_path / "tree.1/z/w").mkdir(parents=True)
    (tmp_path / "tree.2").mkdir()
    for name in sorted(path.name for path in tmp_path.iterdir()):
        remove_tree(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_a_neighbour_of_a_like_name_is_kept(tmp_path: Path) -> None:
    (tmp_path / "tree/x/y").mkdir(parents=True)
    (tmp_path / "tree.1/kept").mkdir(parents=True)
    remove_tree(str(tmp_path / "tree"))
    assert [path.name for path in tmp_path.iterdir()] == ["tree.1"]
    assert (tmp_path / "tree.1/kept").is_dir()
