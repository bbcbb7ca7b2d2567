"""Pushing to real registries, and to ones that fail, what other programs can read."""

from __future__ import annotations

import asyncio
import json
import os
import random
import stat
import struct
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.images.access import Credentials, RegistryAccess
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.layers import LayerInfo
from sandbox_aio.images.manifest import ImageConfig
from sandbox_aio.images.push import push
from sandbox_aio.images.reference import ImageReference
from tests.images.archives import listing
from tests.images.pulling import Puller
from tests.images.servers import Asked, Reply, breaking, digest_of, serving
from tests.registry import PASSWORD, USER, make_image, registry, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandbox_aio.images.pulled import Progress
    from tests.registry import Registry

pytestmark = [pytest.mark.anyio, pytest.mark.root]

LARGE = random.Random(3).randbytes(3_000_000)
CONFIG = ImageConfig(user="7:8", work_dir="/etc", env_vars={"A": "1"}, cmd=("sh",), labels={"l": "x"})


def base(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/a").write_text("a")
    (root / "etc/b").write_text("b")
    (root / "opt").mkdir()
    (root / "opt/old").write_text("old")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image"), [base])


async def captured(puller: Puller, content: bytes = LARGE) -> str:
    """A layer as a capture leaves it: a file, a hole, an opaque directory."""

    async def make(draft: Path) -> LayerInfo:
        tree = draft / "tree"
        (tree / "etc").mkdir()
        (tree / "etc/new").write_bytes(content)
        os.mknod(tree / "etc/a", stat.S_IFCHR, 0)
        (tree / "opt").mkdir()
        os.setxattr(tree / "opt", "user.overlay.opaque", b"y")
        (tree / "opt/link").symlink_to("../etc/new")
        return LayerInfo(size_bytes=len(content), entries=5)

    return await puller.store.add(make, set())


async def put(
    puller: Puller,
    image: str,
    layers: Sequence[str],
    *,
    credentials: Credentials | None = None,
    progress: list[Progress] | None = None,
) -> str:
    digest = await push(
        ImageReference.parse(image),
        store=puller.store,
        layers=layers,
        config=CONFIG,
        access=RegistryAccess(),
        credentials=credentials,
        work=puller.blobs.directory,
        progress=(progress if progress is not None else []).append,
    )
    assert list(puller.blobs.directory.iterdir()) == []
    return digest


def unpacked(image: str, folder: Path, *options: str) -> Path:
    """The root file system that skopeo and umoci make of an image."""
    folder.mkdir()
    run("skopeo", "copy", "-q", "--src-tls-verify=false", *options, f"docker://{image}", f"oci:{folder}/layout:it")
    run("umoci", "unpack", "--image", f"{folder}/layout:it", str(folder / "bundle"))
    return folder / "bundle/rootfs"


MERGED = {"etc": "/", "etc/b": "b", "etc/new": "new", "opt": "/", "opt/link": "-> ../etc/new"}


async def test_other_programs_read_what_is_pushed(hub: Registry, layout: Path, puller: Puller, tmp_path: Path) -> None:
    pulled = await puller.pull(hub.push(layout, "push/base"))
    layers = (await captured(puller, b"new"), *pulled.layers)
    progress: list[Progress] = []
    image = f"{hub.host}/push/result:1.0"
    digest = await put(puller, image, layers, progress=progress)
    assert listing(await asyncio.to_thread(unpacked, image, tmp_path / "other")) == MERGED
    raw = run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{image}")
    assert digest_of(raw.encode()) == digest
    config = json.loads(run("skopeo", "inspect", "--tls-verify=false", "--config", f"docker://{image}"))
    assert config["config"] == {
        "User": "7:8", "Env": ["A=1"], "Cmd": ["sh"], "WorkingDir": "/etc", "Labels": {"l": "x"},
    }  # fmt: skip
    last = progress[-1]
    assert (last.layers_done, last.bytes_done) == (2, last.bytes_total)
    assert str(last).startswith("pushing: 2 of 2 layers, ")


async def test_another_program_unpacks_every_kind_of_file(hub: Registry, puller: Puller, tmp_path: Path) -> None:
    async def make(draft: Path) -> LayerInfo:
        tree = draft / "tree"
        (tree / "d").mkdir()
        for number, name in enumerate(("plain", "n" * 200, "\u00fcml\u00e4ut", "set")):
            (tree / "d" / name).write_text(name)
            os.utime(tree / "d" / name, (0, 1_600_000_000 + number))
        os.chown(tree / "d/set", 70_000, 3_000_000)
        (tree / "d/set").chmod(0o6711)
        os.setxattr(tree / "d/plain", "user.note", b"some\x00thing")
        os.setxattr(tree / "d/plain", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
        os.link(tree / "d/plain", tree / "a-link")
        (tree / "d/dangling").symlink_to("x" * 300)
        os.mkfifo(tree / "d/pipe", 0o620)
        os.mknod(tree / "d/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (tree / "d").chmod(0o1770)
        return LayerInfo(size_bytes=0, entries=10)

    layer = await puller.store.add(make, set())
    await put(puller, f"{hub.host}/kinds", [layer])
    root, tree = await asyncio.to_thread(unpacked, f"{hub.host}/kinds:latest", tmp_path / "x"), puller.store.tree(layer)
    paths = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == paths
    for path in paths:
        one, other = (tree / path).lstat(), (root / path).lstat()
        for field in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_nlink"):
            assert getattr(one, field) == getattr(other, field), (path, field)
        if path.name != "dangling" and not stat.S_ISDIR(one.st_mode):
            assert int(one.st_mtime) == int(other.st_mtime), path
        if stat.S_ISREG(one.st_mode):
            assert (tree / path).read_bytes() == (root / path).read_bytes()
    assert (root / "d/dangling").readlink() == (tree / "d/dangling").readlink()
    for attribute in ("user.note", "security.capability"):
        assert os.getxattr(root / "a-link", attribute) == os.getxattr(tree / "d/plain", attribute)


async def test_our_pull_brings_it_back(hub: Registry, layout: Path, puller: Puller, tmp_path: Path) -> None:
    pulled = await puller.pull(hub.push(layout, "back/base"))
    layers = (await captured(puller), *pulled.layers)
    digest = await put(puller, f"{hub.host}/back/result", layers)
    other = Puller(tmp_path / "other")
    back = await other.pull(f"{hub.host}/back/result")
    assert back.digest == digest
    assert (back.config.user, back.config.env_vars, back.config.cmd) == ("7:8", {"A": "1"}, ("sh",))
    read = (other.store.tree(back.layers[0]) / "etc/new").read_bytes()
    assert read == LARGE


async def test_layers_that_were_pulled_are_mounted_as_they_were(hub: Registry, layout: Path, puller: Puller) -> None:
    source = hub.push(layout, "mount/base")
    pulled = await puller.pull(source)
    progress: list[Progress] = []
    await put(puller, f"{hub.host}/mount/result", pulled.layers, progress=progress)
    manifests = [
        json.loads(run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{image}"))
        for image in (source, f"{hub.host}/mount/result")
    ]
    assert manifests[0]["layers"] == manifests[1]["layers"]
    assert progress[-1].bytes_total == manifests[1]["config"]["size"]  # Nothing else was sent.


async def test_what_is_there_is_neither_packed_nor_sent_again(hub: Registry, puller: Puller) -> None:
    layer = await captured(puller)
    first = await put(puller, f"{hub.host}/again", [layer])
    # A tree that is gone cannot be packed.
    puller.store.tree(layer).rename(puller.store.directory / layer / "moved")
    progress: list[Progress] = []
    assert await put(puller, f"{hub.host}/again:2", [layer], progress=progress) == first
    assert progress[-1].bytes_total == 0
    assert await put(puller, f"{hub.host}/elsewhere/again", [layer]) == first


async def test_a_registry_that_knows_its_users(tmp_path: Path, puller: Puller) -> None:
    layer = await captured(puller)
    with registry(tmp_path / "private", users=True) as private:
        image = f"{private.host}/a/b"
        for credentials, reason in ((None, "wants a user name"), (Credentials(USER, "wrong"), "does not accept")):
            with pytest.raises(ImageError, match=reason) as caught:
                await put(puller, image, [layer], credentials=credentials)
            assert caught.value.kind == "ImageUnauthorized"
        await put(puller, image, [layer], credentials=Credentials(USER, PASSWORD))
        root = await asyncio.to_thread(unpacked, f"{image}:latest", tmp_path / "x", f"--src-creds={USER}:{PASSWORD}")
        assert (root / "etc/new").read_bytes() == LARGE


async def test_many_layers(hub: Registry, puller: Puller, tmp_path: Path) -> None:
    layers = [await captured(puller, b"%d" % number) for number in range(12)]
    await put(puller, f"{hub.host}/many", layers)
    root = await asyncio.to_thread(unpacked, f"{hub.host}/many:latest", tmp_path / "x")
    assert (root / "etc/new").read_text() == "0"


async def test_a_real_registry_over_a_line_that_breaks(hub: Registry, puller: Puller, tmp_path: Path) -> None:
    layer = await captured(puller)
    progress: list[Progress] = []
    async with breaking(hub.host, up=(1_000_000, 2_000_000)) as host:
        await put(puller, f"{host}/broken/push", [layer], progress=progress)
    assert progress[-1].bytes_done == progress[-1].bytes_total
    root = await asyncio.to_thread(unpacked, f"{hub.host}/broken/push:latest", tmp_path / "x")
    assert (root / "etc/new").read_bytes() == LARGE


async def test_what_cannot_be_pushed_is_said(puller: Puller) -> None:
    with pytest.raises(ImageError, match="needs a tag") as caught:
        await put(puller, f"127.0.0.1:1/a@sha256:{'0' * 64}", ["1"])
    assert caught.value.kind == "ImageReference"
    with pytest.raises(ImageError, match="has no layers") as caught:
        await put(puller, "127.0.0.1:1/a", [])
    assert caught.value.kind == "ImageExport"
    layer = await captured(puller)
    with pytest.raises(ImageError, match="cannot be reached") as caught:
        await put(puller, "127.0.0.1:1/a", [layer])
    assert caught.value.kind == "ImageExport"


class Target:
    """A registry that takes an upload in pieces, and fails as it is told."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.failures: dict[str, list[Any]] = {}
        """For each method, what is done instead: a Reply; or a number, of bytes that are kept before all is lost."""

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        failure = next(iter(self.failures.get(asked.method, [])), None)
        if failure is not None:
            self.failures[asked.method].pop(0)
        if isinstance(failure, Reply):
            return failure
        kind, name = asked.path.split("/")[-2:]
        return getattr(self, f"_{asked.method.lower()}")(asked, kind, name, failure)  # type: ignore[no-any-return]

    def _head(self, asked: Asked, kind: str, name: str, failure: int | None) -> Reply:
        return Reply(status=200 if name in self.blobs else 404)

    def _post(self, asked: Asked, kind: str, name: str, failure: int | None) -> Reply:
        upload = f"u{len(self.uploads)}"
        self.uploads[upload] = b""
        return Reply(status=202, headers={"location": f"/v2/x/uploads/{upload}?state=1"})

    def _patch(self, asked: Asked, kind: str, name: str, failure: int | None) -> Reply:
        begin = int(asked.headers.get("content-range", "0-").partition("-")[0])
        assert begin == len(self.uploads[name])
        self.uploads[name] += asked.body[:failure]
        if failure is not None:
            raise ConnectionResetError
        return Reply(status=202, headers={"location": f"/v2/x/uploads/{name}?state=2"})

    def _get(self, asked: Asked, kind: str, name: str, failure: int | None) -> Reply:
        last = max(len(self.uploads[name]) - 1, 0)
        return Reply(status=204, headers={"range": f"0-{last}", "location": f"/v2/x/uploads/{name}?state=3"})

    def _put(self, asked: Asked, kind: str, name: str, failure: int | None) -> Reply:
        if kind == "manifests":
            self.manifests[name] = asked.body
            return Reply(status=201, headers={"docker-content-digest": digest_of(asked.body)})
        digest = dict(asked.query)["digest"]
        if digest_of(self.uploads[name]) != digest:
            return Reply(status=400, body=b"DIGEST_INVALID")
        self.blobs[digest] = self.uploads.pop(name)
        if failure is not None:
            raise ConnectionResetError
        return Reply(status=201)

    def sent(self) -> list[int]:
        """The sizes of the pieces that layers were sent in."""
        return [len(asked.body) for asked in self.asked if asked.method == "PATCH" and len(asked.body) > 10_000]


async def pushed(puller: Puller, target: Target) -> list[Progress]:
    progress: list[Progress] = []
    layer = await captured(puller)
    async with serving(target.answer) as host:
        digest = await put(puller, f"{host}/a/b", [layer], progress=progress)
    assert digest_of(target.manifests["latest"]) == digest
    manifest = json.loads(target.manifests["latest"])
    for part in (manifest["config"], *manifest["layers"]):
        assert len(target.blobs[part["digest"]]) == part["size"]
    assert progress[-1].bytes_done == progress[-1].bytes_total
    return progress


async def test_an_upload_that_breaks_is_taken_up_where_it_broke(puller: Puller) -> None:
    target = Target()
    target.failures["PATCH"] = [1_000_000, 500_000]
    await pushed(puller, target)
    first, second, third = target.sent()
    assert (first - second, second - third) == (1_000_000, 500_000)


async def test_an_upload_that_a_registry_has_forgotten_begins_anew(puller: Puller) -> None:
    target = Target()
    target.failures = {"PATCH": [1_000_000], "GET": [Reply(status=404)]}
    await pushed(puller, target)
    first, second = target.sent()
    assert first == second


async def test_an_answer_that_is_lost_costs_nothing(puller: Puller) -> None:
    target = Target()
    target.failures["PUT"] = [1]
    await pushed(puller, target)
    assert len(target.sent()) == 1


async def test_an_upload_that_never_arrives_is_given_up(puller: Puller) -> None:
    target = Target()
    target.failures["PUT"] = [Reply(status=400, body=b"DIGEST_INVALID")] * 50
    layer = await captured(puller)
    async with serving(target.answer) as host:
        with pytest.raises(ImageError, match="answered 400 DIGEST_INVALID") as caught:
            await put(puller, f"{host}/a/b", [layer])
    assert caught.value.kind == "ImageExport"
    assert len([asked for asked in target.asked if asked.method == "PUT"]) == 5
    assert target.manifests == {}


async def test_a_location_that_is_no_good_is_refused(puller: Puller) -> None:
    layer = await captured(puller)
    for headers, reason in (({}, "does not say where"), ({"location": "ftp://x/"}, "not secure or no URL")):
        target = Target()
        target.failures["POST"] = [Reply(status=202, headers=headers)] * 5
        async with serving(target.answer) as host:
            with pytest.raises(ImageError, match=reason):
                await put(puller, f"{host}/a/b", [layer])


async def test_a_manifest_that_is_stored_as_another_is_told(puller: Puller) -> None:
    target = Target()
    layer = await captured(puller, b"small")
    async with serving(target.answer) as host:
        await put(puller, f"{host}/a/b", [layer])
        target.failures["PUT"] = [Reply(status=201, headers={"docker-content-digest": f"sha256:{'0' * 64}"})]
        with pytest.raises(ImageError, match="has stored the manifest as sha256:000"):
            await put(puller, f"{host}/a/b", [layer])


async def test_cancelling_leaves_nothing(puller: Puller) -> None:
    layer = await captured(puller, random.Random(1).randbytes(20_000_000))
    target, stop = Target(), asyncio.Event()

    async def answer(asked: Asked) -> Reply:
        if asked.method == "PATCH":
            await stop.wait()
        return target.answer(asked)

    async with serving(answer) as host:
        for step in range(8):
            task = asyncio.create_task(put(puller, f"{host}/a/b", [layer]))
            await asyncio.wait([task], timeout=step * 0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            assert list(puller.blobs.directory.iterdir()) == []
