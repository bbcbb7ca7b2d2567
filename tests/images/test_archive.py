"""Importing images from files that skopeo has written, and from files that nobody should have."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from sandbox_aio.images import archive as module
from sandbox_aio.images.archive import import_archive
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.layers import LayerStore
from sandbox_aio.images.manifest import ARCHITECTURE
from sandbox_aio.images.unpack import UnpackLimits
from tests.images.archives import file, layer, listing, whiteout
from tests.registry import make_image, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sandbox_aio.images.pulled import PulledImage

pytestmark = pytest.mark.anyio

LOWER = layer(file("a", "1"), file("b", "1"), compress=False)
UPPER = layer(whiteout("a"), file("c", "2"), compress=False)


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    made = LayerStore(tmp_path / "layers")
    made.open()
    return made


async def bring(path: Path, store: LayerStore, room: int = 1 << 20) -> PulledImage:
    return await import_archive(path, store=store, limits=UnpackLimits(max_bytes=room), pins=set(), name="it.tar")


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar(path: Path, members: Mapping[str, bytes | str]) -> Path:
    """A tar file; a member that is text is a symbolic link."""
    with tarfile.open(path, "w") as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                made.addfile(info)
            else:
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    return path


def config(*layers: bytes, **changes: Any) -> bytes:
    document = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"User": "alice", "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
    }
    return json.dumps({**document, **changes}).encode()


def docker(**changes: bytes | str) -> dict[str, bytes | str]:
    """What `docker save` wrote for long."""
    manifest = [{"Config": "c.json", "RepoTags": ["it:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]
    members: dict[str, bytes | str] = {
        "1/layer.tar": LOWER,
        "2/layer.tar": UPPER,
        "c.json": config(LOWER, UPPER),
        "manifest.json": json.dumps(manifest).encode(),
    }
    return {**members, **changes}


async def check(image: PulledImage, store: LayerStore) -> None:
    upper, lower = (listing(store.tree(id)) for id in image.layers)
    assert (lower, upper) == ({"a": "1", "b": "1"}, {"a": "hidden", "c": "2"})
    assert (image.config.user, image.config.env_vars, image.size_bytes) == ("alice", {"A": "b"}, 3)


async def test_what_docker_saved(tmp_path: Path, store: LayerStore) -> None:
    image = await bring(tar(tmp_path / "it.tar", docker()), store)
    await check(image, store)
    assert (await bring(tmp_path / "it.tar", store)).layers == image.layers


async def test_a_layer_may_be_a_link_to_another_or_compressed(tmp_path: Path, store: LayerStore) -> None:
    members = docker() | {"1/layer.tar": "../x/./layer.tar", "x/layer.tar": gzip.compress(LOWER)}
    await check(await bring(tar(tmp_path / "it.tar", members), store), store)


async def test_an_oci_layout_of_several_platforms(tmp_path: Path, store: LayerStore) -> None:
    blobs = {digest(one): one for one in (LOWER, UPPER, config(LOWER, UPPER))}

    def descriptor(data: bytes, **more: Any) -> dict[str, Any]:
        blobs[digest(data)] = data
        return {"digest": digest(data), "size": len(data), **more}

    manifest = json.dumps(
        {"config": descriptor(config(LOWER, UPPER)), "layers": [descriptor(LOWER), descriptor(UPPER)]}
    ).encode()
    platforms = {
        "manifests": [
            descriptor(b"another", platform={"os": "linux", "architecture": "vax"}),
            descriptor(manifest, platform={"os": "linux", "architecture": ARCHITECTURE}),
        ]
    }
    index = json.dumps({"manifests": [descriptor(json.dumps(platforms).encode())]}).encode()
    members: dict[str, bytes | str] = {f"blobs/{name.replace(':', '/')}": data for name, data in blobs.items()}
    image = await bring(tar(tmp_path / "it.tar", {**members, "index.json": index}), store)
    await check(image, store)
    assert image.digest == digest(manifest)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
async def test_an_archive_that_is_compressed_as_a_whole(
    tmp_path: Path, store: LayerStore, compress: Callable[[bytes], bytes]
) -> None:
    path = tar(tmp_path / "it.tar", docker())
    path.write_bytes(compress(path.read_bytes()))
    await check(await bring(path, store), store)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["it.tar", "layers"]


async def test_a_compressed_archive_of_more_than_there_is_room_for(tmp_path: Path, store: LayerStore) -> None:
    (tmp_path / "it.tar").write_bytes(gzip.compress(bytes(80 << 20), compresslevel=1))
    limits = UnpackLimits(max_bytes=1, max_entries=1)
    with pytest.raises(ImageError, match="room for") as caught:
        await import_archive(tmp_path / "it.tar", store=store, limits=limits, pins=set())
    assert caught.value.kind == "ImageTooLarge"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["it.tar", "layers"]


async def test_a_name_that_wants_memory_is_refused(tmp_path: Path, store: LayerStore) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "it.tar").write_bytes(header.tobuf(format=tarfile.GNU_FORMAT))
    with pytest.raises(ImageError, match=r"it\.tar cannot be imported: a header announces 8,589,934,592 bytes"):
        await bring(tmp_path / "it.tar", store)


@pytest.mark.root
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
async def test_what_skopeo_writes(tmp_path: Path, store: LayerStore, form: str) -> None:
    def change(root: Path) -> None:
        (root / "x").write_text("one")

    layout = make_image(tmp_path / "image", [change])
    run("skopeo", "copy", "-q", f"oci:{layout}:it", f"{form}:{tmp_path}/it.tar:name:tag")
    image = await bring(tmp_path / "it.tar", store)
    assert listing(store.tree(image.layers[0]))["x"] == "one"


async def test_layers_that_other_than_their_names_say_are_refused(tmp_path: Path, store: LayerStore) -> None:
    with pytest.raises(ImageError, match="unpacks to sha256"):
        await bring(tar(tmp_path / "it.tar", docker(**{"2/layer.tar": LOWER})), store)
    assert len(store.ids()) == 1


WRONG: dict[str, tuple[dict[str, bytes | str], str]] = {
    "nothing": ({"x": b""}, "neither index.json nor manifest.json"),
    "no json": (docker(**{"manifest.json": b"{"}), "one image"),
    "two images": (docker(**{"manifest.json": b"[{}, {}]"}), "one image"),
    "no layers": (docker(**{"manifest.json": b'[{"Config": "c.json", "Layers": 1}]'}), "names no layers"),
    "a layer is missing": (docker(**{"2/layer.tar": "../nowhere"}), "no member '2/layer.tar'"),
    "another machine": (docker(**{"c.json": config(LOWER, UPPER, architecture="vax")}), "linux/vax"),
    "a deep index": ({"index.json": b'{"manifests": []}'}, "not built for"),
    "a lying digest": (
        {
            "index.json": json.dumps({"manifests": [{"digest": digest(b"x"), "size": 1}]}).encode(),
            f"blobs/sha256/{digest(b'x')[7:]}": b"y",
        },
        "not what its digest says",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_no_image_is_said_so(tmp_path: Path, store: LayerStore, name: str) -> None:
    members, reason = WRONG[name]
    with pytest.raises(ImageError, match=reason):
        await bring(tar(tmp_path / "it.tar", members), store)


async def test_what_is_no_archive_is_said_so(tmp_path: Path, store: LayerStore) -> None:
    (tmp_path / "it.tar").write_bytes(b"nonsense" * 1000)
    with pytest.raises(ImageError, match=r"it\.tar cannot be imported: it is no tar archive"):
        await bring(tmp_path / "it.tar", store)


async def test_what_is_too_much_is_refused(tmp_path: Path, store: LayerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tar(tmp_path / "it.tar", docker())
    with pytest.raises(ImageError, match="room for"):
        await bring(tmp_path / "it.tar", store, room=1)
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    with pytest.raises(ImageError, match="more than 3 members"):
        await bring(tmp_path / "it.tar", store)
    monkeypatch.setattr(module, "MAX_MEMBERS", 10)
    monkeypatch.setattr(module, "MAX_DOCUMENT", 20)
    with pytest.raises(ImageError, match="over 20 bytes"):
        await bring(tmp_path / "it.tar", store)


async def test_an_import_that_is_cancelled_stops_unpacking(tmp_path: Path, store: LayerStore) -> None:
    """Zeros of many gigabytes: nobody would wait for their end."""
    large = gzip.compress(bytes(64 << 20), compresslevel=1) * 256
    info = tarfile.TarInfo("zeros")
    info.size = 64 << 28
    one = gzip.compress(info.tobuf()) + large
    manifest = [{"Config": "c.json", "RepoTags": [], "Layers": ["1/layer.tar"]}]
    path = tar(
        tmp_path / "it.tar",
        {"1/layer.tar": one, "c.json": config(b""), "manifest.json": json.dumps(manifest).encode()},
    )
    task = asyncio.create_task(bring(path, store, room=1 << 40))
    while not any(store.directory.glob("draft-*/tree/zeros")):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(store.directory.iterdir()) == []
