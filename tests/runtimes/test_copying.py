"""Copying a tree in passes while it is changed, with whatever names, modes and attributes it has."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from sandbox_aio.runtimes.namespaces import copying
from sandbox_aio.runtimes.namespaces.copied_tree import CopyLimits, Mapped
from sandbox_aio.runtimes.namespaces.copying import TreeCopy
from tests.runtimes.host import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def settle(folder: Path) -> None:
    """Wait until a change made before this can be told from one made after it."""
    probe = folder / "probe"
    begun = time.time_ns() + copying.MARGIN_NS

    def is_later() -> bool:
        probe.touch()
        return probe.stat().st_ctime_ns > begun

    assert eventually(is_later)
    probe.unlink()


def listing(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that a copy must keep; hard links by the first name of each."""
    found: dict[str, tuple[Any, ...]] = {}
    first: dict[int, str] = {}
    for folder, folders, files in sorted(os.walk(top)):
        for path in sorted([folder, *(os.path.join(folder, name) for name in (*folders, *files))]):
            status = os.lstat(path)
            name = os.path.relpath(path, top)
            content: Any = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            same = first.setdefault(status.st_ino, name)
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in _attributes(path)}
            found[name] = (status.st_mode, status.st_uid, status.st_mtime_ns, content, same, attributes)
    return found


def _attributes(path: str) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


class Changer:
    """Changes a tree at random."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = random.Random(seed)

    def change(self, times: int) -> None:
        acts = [self.write, self.write, self.append, self.remove, self.link, self.symlink, self.fifo, self.folder]
        for _ in range(times):
            try:
                self.random.choice([*acts, self.folder, self.move, self.note, self.mode])()
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EINVAL):
                    raise

    def any(self, kind: int | None = None) -> Path | None:
        """Something that is there, of one kind if one is given."""
        there = [path for path in sorted(self.top.rglob("*")) if kind in (None, stat.S_IFMT(path.lstat().st_mode))]
        return self.random.choice(there) if there else None

    def place(self) -> Path:
        return (self.any(stat.S_IFDIR) or self.top) / self.random.choice("abcdef")

    def write(self) -> None:
        place = self.place()
        if not place.is_symlink() and not place.is_fifo():
            place.write_bytes(self.random.randbytes(self.random.randrange(5000)))

    def append(self) -> None:
        if (path := self.any(stat.S_IFREG)) is not None:
            with path.open("ab") as file:
                file.write(b"more")

    def remove(self) -> None:
        if (path := self.any()) is not None:
            os.rmdir(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def link(self) -> None:
        if (path := self.any(stat.S_IFREG)) is not None:
            self.place().hardlink_to(path)

    def symlink(self) -> None:
        self.place().symlink_to("nowhere")

    def fifo(self) -> None:
        place = self.place()
        os.mkfifo(place)
        place.chmod(0o666)

    def folder(self) -> None:
        self.place().mkdir()

    def move(self) -> None:
        if (path := self.any()) is not None:
            os.rename(path, self.place())

    def note(self) -> None:
        path = self.any(stat.S_IFREG) or self.any(stat.S_IFDIR)
        if path is not None:
            if "user.note" in os.listxattr(path):
                os.removexattr(path, "user.note")
            else:
                os.setxattr(path, "user.note", self.random.randbytes(10))

    def mode(self) -> None:
        path = self.any(stat.S_IFREG) or self.any(stat.S_IFDIR)
        if path is not None:
            path.chmod(self.random.choice((0o700, 0o755, 0o1777 if path.is_dir() else 0o644)))


@pytest.mark.parametrize("seed", range(12))
def test_the_last_pass_makes_it_the_same(source: Path, target: Path, seed: int) -> None:
    changer = Changer(source, seed)
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    changer.change(150)
    for _ in range(2):
        copy.copy([(str(source), "")], frozen=False)
        settle(target.parent)
        changer.change(15)
    copy.copy([(str(source), "")], frozen=True)
    copy.finish()
    assert listing(target) == listing(source)
    assert {path.name for path in target.parent.iterdir()} == {"source", "target"}


def test_what_has_not_changed_is_not_copied_again(source: Path, target: Path) -> None:
    (source / "d").mkdir()
    for number in range(20):
        (source / f"d/{number}").write_text("x")
        (source / f"linked-{number}").hardlink_to(source / f"d/{number}")
    settle(target.parent)
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    copy.copy([(str(source), "")], frozen=False)
    assert copy.copied == 40
    (source / "d/7").write_text("changed")
    copy.copy([(str(source), "")], frozen=True)
    copy.finish()
    assert copy.copied == 2
    assert listing(target) == listing(source)


@pytest.mark.parametrize("known_by", ["name", "inode"])
def test_what_is_mapped_is_copied_though_it_looks_the_same(source: Path, target: Path, known_by: str) -> None:
    for name in ("a", "b", "other"):
        (source / name).write_text("x")
    settle(target.parent)
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    copy.copy([(str(source), "")], frozen=False)
    inodes = frozenset({(source / "a").stat().st_ino})
    mapped = Mapped(names=frozenset({"a"})) if known_by == "name" else Mapped(inodes=inodes)
    copy.copy([(str(source), "")], frozen=True, mapped=mapped)
    assert copy.copied == 1


def test_paths_longer_than_the_kernel_takes(source: Path, target: Path) -> None:
    name, depth = "d" * 200, 600
    here = os.open(source, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=here))
    os.link("file", "twin", src_dir_fd=here, dst_dir_fd=here)
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    copy.copy([(str(source), "")], frozen=False)
    copy.copy([(str(source), "")], frozen=True)
    copy.finish()
    assert len(os.listdir("/proc/self/fd")) == before
    here = os.open(target, os.O_RDONLY)
    for _ in range(depth):
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    assert sorted(os.listdir(here)) == ["file", "twin"]
    assert os.stat("file", dir_fd=here).st_nlink == 2
    os.close(here)


def test_a_directory_that_moves_away_ends_a_pass_early_and_no_more(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "OPEN_LEVELS", 2)
    deep = source / "a/b/c/d/e"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (source / "a/z").write_text("z")
    original = TreeCopy._file

    def moving(self: TreeCopy, *arguments: Any) -> None:
        original(self, *arguments)
        if (source / "a/b/c/d").exists():
            (source / "a/b/c/d").rename(source / "elsewhere")

    monkeypatch.setattr(TreeCopy, "_file", moving)
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    copy.copy([(str(source), "")], frozen=False)
    copy.copy([(str(source), "")], frozen=True)
    copy.finish()
    assert listing(target) == listing(source)


def test_what_its_owner_may_not_read_is_copied_and_stays_closed(source: Path, target: Path) -> None:
    for name, mode in (("closed", 0), ("no-search", 0o400), ("no-read", 0o100)):
        (source / name / "inner").mkdir(parents=True)
        (source / name / "inner/file").write_text(name)
        (source / name / "inner/file").chmod(0)
        (source / name / "inner").chmod(mode)
        (source / name).chmod(mode)
    (source / "read-only").write_text("x")
    os.setxattr(source / "read-only", "user.note", b"kept")
    (source / "read-only").chmod(0o400)
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    copy.copy([(str(source), "")], frozen=False)
    copy.copy([(str(source), "")], frozen=True)
    copy.finish()
    assert os.getxattr(target / "read-only", "user.note") == b"kept"
    for top in (source, target):
        for name, mode in (("closed", 0), ("no-search", 0o400), ("no-read", 0o100)):
            for path in (top / name, top / name / "inner"):
                assert stat.S_IMODE(path.stat().st_mode) == mode
                path.chmod(0o700)
            assert stat.S_IMODE((top / name / "inner/file").stat().st_mode) == 0
            (top / name / "inner/file").chmod(0o600)
            assert (top / name / "inner/file").read_text() == name


def test_opening_up_a_file_never_reaches_what_a_link_in_its_place_names(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = target.parent / "secret"
    secret.write_text("the host's")
    secret.chmod(0o600)
    (source / "file").touch(mode=0o777)
    original = os.open

    def refused(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if path == "file" and not (source / "file").is_symlink():
            (source / "file").unlink()
            (source / "file").symlink_to(secret)
            raise PermissionError(errno.EACCES, "as for an ordinary user")
        return original(path, flags, *rest, **options)

    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(OSError, match="was changed while it was copied"):
            copy.copy([(str(source), "")], frozen=True)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_attributes_of_directories_that_have_gone_are_taken_away(source: Path, target: Path) -> None:
    (source / "d").mkdir()
    os.setxattr(source / "d", "user.overlay.opaque", b"y")
    os.setxattr(source / "d", "user.overlay.origin", b"of this sandbox")
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    copy.copy([(str(source), "")], frozen=True)
    copy.finish()
    assert os.listxattr(target / "d") == ["user.overlay.opaque"]
    os.removexattr(source / "d", "user.overlay.opaque")
    copy.copy([(str(source), "")], frozen=True)
    copy.finish()
    assert os.listxattr(target / "d") == []


def given_up(copy: TreeCopy) -> dict[str, Any]:
    copy.give_up()
    return {"frozen": True}


def late(copy: TreeCopy) -> dict[str, Any]:
    return {"frozen": True, "deadline": time.monotonic() - 1}


@pytest.mark.parametrize(("begin", "words"), [(given_up, "given up"), (late, "took longer")])
def test_a_pass_can_be_ended(source: Path, target: Path, begin: Any, words: str) -> None:
    (source / "file").write_text("x")
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    with pytest.raises(RuntimeFailure, match=words):
        copy.copy([(str(source), "")], **begin(copy))


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before
