"""Random stacks of layers, unpacked by us and by umoci: the image that programs see is the same."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_aio.images.manifest import ARCHITECTURE
from sandbox_aio.images.pack import pack_layer
from sandbox_aio.images.unpack import UnpackLimits, unpack_layer
from tests.images.archives import Entry, directory, file, hard_link, layer, symlink, whiteout
from tests.registry import run

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.root

NAMES = st.sampled_from(["a", "b", "c"])
WAYS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


class Stack:
    """Layers in the making. `seen` is the image so far, by path: `d`, `f` or `l`."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.seen: dict[str, str] = {}
        self.entries: dict[str, Entry] = {}
        self.gone: set[str] = set()

    def layer(self) -> list[Entry]:
        """One more layer, which only does what the ones before allow: no file in the way of a folder."""
        self.entries, self.gone = {}, set()
        for _ in range(self.draw(st.integers(1, 6))):
            way = self.draw(WAYS)
            above = [way.rsplit("/", depth)[0] for depth in range(1, way.count("/") + 1)]
            free = way not in self.entries and not self.gone.intersection([way, *above])
            if free and all(self.seen.get(one, "d") == "d" for one in above):
                getattr(self, self.draw(st.sampled_from(["folder", "file", "link", "hard_link", "hole", "opaque"])))(
                    way
                )
        return list(self.entries.values())

    def below(self, way: str, paths: Iterable[str]) -> list[str]:
        return [one for one in paths if one.startswith(f"{way}/")]

    def put(self, way: str, kind: str, entry: Entry) -> None:
        for depth in range(1, way.count("/") + 1):
            self.seen.setdefault(way.rsplit("/", depth)[0], "d")
        self.entries[way], self.seen[way] = entry, kind

    def mode(self) -> int:
        return self.draw(st.sampled_from([0o755, 0o700, 0o1777, 0o644, 0o4755]))

    def folder(self, way: str) -> None:
        self.put(way, "d", directory(way, mode=self.mode(), mtime=1000, uid=self.draw(st.sampled_from([0, 33]))))

    def file(self, way: str) -> None:
        if not self.below(way, [*self.seen, *self.entries]):
            self.put(way, "f", file(way, self.draw(st.text("xy", max_size=3)), mode=self.mode(), mtime=2000))

    def link(self, way: str) -> None:
        if not self.below(way, [*self.seen, *self.entries]):
            self.put(way, "l", symlink(way, self.draw(st.sampled_from(["nowhere", "/a", "../x"])), mtime=3000))

    def hard_link(self, way: str) -> None:
        files = [one for one, kind in self.seen.items() if kind == "f" and one != way]
        if files and self.seen.get(way, "f") == "f" and not self.below(way, [*self.seen, *self.entries]):
            self.put(way, "f", hard_link(way, self.draw(st.sampled_from(files))))

    def hole(self, way: str) -> None:
        if way in self.seen and not self.below(way, self.entries):
            self.gone.add(way)
            self.entries[f"{way} is gone"] = whiteout(way)
            for one in [way, *self.below(way, list(self.seen))]:
                del self.seen[one]

    def opaque(self, way: str) -> None:
        if self.seen.get(way) == "d" and not self.below(way, [*self.seen, *self.entries]):
            self.entries[f"{way} is opaque"] = file(f"{way}/.wh..wh..opq")


@st.composite
def layers(draw: st.DrawFn) -> list[list[Entry]]:
    """A few layers over one another, the lowest first."""
    stack = Stack(draw)
    return [stack.layer() for _ in range(draw(st.integers(1, 4)))]


def merged(trees: list[Path]) -> dict[str, tuple[object, ...]]:
    """What an overlay over these trees, the lowest first, shows."""
    shown: dict[str, tuple[object, ...]] = {}
    for tree in trees:
        for folder, directories, files in os.walk(tree):
            for name in (*directories, *files):
                path = Path(folder, name)
                way, status = str(path.relative_to(tree)), path.lstat()
                hides = stat.S_ISCHR(status.st_mode) or not stat.S_ISDIR(status.st_mode)
                if hides or "user.overlay.opaque" in os.listxattr(path, follow_symlinks=False):
                    for one in [one for one in shown if one.startswith(f"{way}/")]:
                        del shown[one]
                shown.pop(way, None)
                if not stat.S_ISCHR(status.st_mode):
                    shown[way] = describe(path)
    return shown


def describe(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    target = os.readlink(path) if path.is_symlink() else ""
    return (oct(status.st_mode), status.st_uid, content, target)


def layout_of(folder: Path, archives: list[bytes]) -> Path:
    """An OCI layout of these layers, with an image called `it`."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(data)).hexdigest()}" for data in archives]
    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {},
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(data, "layer.v1.tar+gzip") for data in archives],
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "it"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(layers())
def test_the_same_image_is_seen(stack: list[list[Entry]]) -> None:
    archives = [layer(*entries) for entries in stack]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees: list[Path] = []
        for number, data in enumerate(archives):
            tree = folder / str(number)
            tree.mkdir()
            unpack_layer(io.BytesIO(data), tree, trees[::-1], limits=UnpackLimits(max_bytes=1 << 20))
            trees.append(tree)
        run("umoci", "unpack", "--image", f"{layout_of(folder / 'layout', archives)}:it", folder / "bundle")
        assert merged(trees) == merged([folder / "bundle/rootfs"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(layers())
def test_what_is_packed_is_unpacked_alike(stack: list[list[Entry]]) -> None:
    """Every layer, over those below it; and it is packed into the same bytes again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees: list[Path] = []
        for number, entries in enumerate(stack):
            tree, again = folder / str(number), folder / f"{number} again"
            tree.mkdir()
            again.mkdir()
            limits = UnpackLimits(max_bytes=1 << 20)
            unpack_layer(io.BytesIO(layer(*entries)), tree, trees, limits=limits)
            packed, packed_again = io.BytesIO(), io.BytesIO()
            done = pack_layer(tree, packed)
            assert unpack_layer(io.BytesIO(packed.getvalue()), again, trees, limits=limits).diff_id == done.diff_id
            assert raw(again) == raw(tree)
            pack_layer(again, packed_again)
            assert packed_again.getvalue() == packed.getvalue()
            trees.insert(0, tree)


def raw(tree: Path) -> dict[str, tuple[object, ...]]:
    """What is in the tree of one layer, holes and opaque directories among it, and which names are one file."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for folder, directories, files in os.walk(tree):
        for name in sorted((*directories, *files)):
            path = Path(folder, name)
            way, status = str(path.relative_to(tree)), path.lstat()
            is_opaque = "user.overlay.opaque" in os.listxattr(path, follow_symlinks=False)
            is_hole = stat.S_ISCHR(status.st_mode)
            group = way if is_hole or stat.S_ISDIR(status.st_mode) else first.setdefault(status.st_ino, way)
            found[way] = ("hole",) if is_hole else (*describe(path), is_opaque, group)
    return found
