"""Pulling from a real registry images that programs of other hands have made and pushed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from typing import TYPE_CHECKING

import httpx
import pytest

from sandbox_aio.images.access import Credentials, RegistryAccess
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.layers import LayerInfo
from sandbox_aio.images.manifest import ACCEPTED, ARCHITECTURE, DOCKER_INDEX, OCI_INDEX
from tests.images.pulling import Puller
from tests.images.servers import digest_of
from tests.registry import PASSWORD, USER, make_image, registry

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry import Registry

pytestmark = [pytest.mark.anyio, pytest.mark.root]


def first(root: Path) -> None:
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/tool").write_text("tool 1")
    (root / "etc").mkdir()
    for name in ("a", "b", "c"):
        (root / "etc" / name).write_text(name * 1000)


def second(root: Path) -> None:
    (root / "etc/a").unlink()
    shutil.rmtree(root / "usr/bin")
    (root / "usr/bin").mkdir()
    (root / "usr/bin/new").write_text("new")
    os.link(root / "etc/b", root / "etc/d")


CONFIG = {"config.user": ["alice:staff"], "config.workingdir": ["/etc"], "config.env": ["A=1", "B=two words"]}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of two layers."""
    return make_image(tmp_path_factory.mktemp("image"), [first, second], CONFIG)


FORMATS = {"oci": (), "docker": ("--format", "v2s2"), "zstd": ("--dest-compress", "--dest-compress-format", "zstd")}


@pytest.mark.parametrize("name", FORMATS)
async def test_an_image_arrives_whole(hub: Registry, layout: Path, puller: Puller, name: str) -> None:
    image = hub.push(layout, f"whole/{name}", *FORMATS[name])
    pulled = await puller.pull(image)
    lower, upper = puller.trees(pulled)
    assert lower["bin"] == "-> usr/bin"
    assert upper["etc/a"] == "hidden"
    assert upper["usr/bin/new"] == "new"
    assert upper["usr/bin/tool"] == "hidden" or upper["usr/bin"] == "opaque/"
    assert (pulled.config.user, pulled.config.work_dir) == ("alice:staff", "/etc")
    assert pulled.config.env_vars == {"A": "1", "B": "two words"}
    assert pulled.digest.startswith("sha256:")
    assert puller.progress[-1].layers_done == 2
    assert str(puller.progress[-1]).startswith("pulling: 2 of 2 layers, 0.0 of 0.0 MB")
    assert list(puller.blobs.directory.iterdir()) == []


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_INDEX])
async def test_an_index_leads_to_this_machines_image(hub: Registry, layout: Path, puller: Puller, kind: str) -> None:
    name = f"index/{'docker' if 'docker' in kind else 'oci'}"
    hub.push(layout, name, *(FORMATS["docker"] if "docker" in kind else ()))
    url = f"http://{hub.host}/v2/{name}/manifests"
    async with httpx.AsyncClient(headers={"accept": ", ".join(ACCEPTED)}) as client:
        got = await client.get(f"{url}/latest")
        data = got.content
        entry = {"mediaType": got.headers["content-type"], "digest": digest_of(data), "size": len(data)}
        platforms = ({"os": "linux", "architecture": "s390x"}, {"os": "linux", "architecture": ARCHITECTURE})
        entries = [{**entry, "platform": platform} for platform in platforms]
        index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
        put = await client.put(f"{url}/many", content=index, headers={"content-type": kind})
        assert put.status_code == 201, put.text
    pulled = await puller.pull(f"{hub.host}/{name}:many")
    assert len(pulled.layers) == 2
    assert pulled.digest == digest_of(data)
    for digest in (digest_of(index), digest_of(data)):
        assert (await puller.pull(f"{hub.host}/{name}@{digest}")).layers == pulled.layers


async def test_layers_that_are_there_are_neither_downloaded_nor_unpacked(
    hub: Registry, layout: Path, puller: Puller
) -> None:
    image = hub.push(layout, "again")
    once = await puller.pull(image)
    puller.progress.clear()
    assert (await puller.pull(image)).layers == once.layers
    assert puller.progress[-1].bytes_total == 0
    reopened = Puller(puller.store.directory.parent)
    assert (await reopened.pull(image)).layers == once.layers


async def test_two_at_once_unpack_once(hub: Registry, layout: Path, puller: Puller) -> None:
    image = hub.push(layout, "twice")
    pulled = await asyncio.gather(*(puller.pull(image) for _ in range(5)))
    assert {image.layers for image in pulled} == {("2", "1")}
    assert sorted(puller.store.ids()) == ["1", "2"]


async def test_one_that_is_cancelled_leaves_the_others_alone(hub: Registry, layout: Path, puller: Puller) -> None:
    image = hub.push(layout, "cancelled")
    for pause in (0.0, 0.005, 0.01, 0.02):
        impatient = asyncio.create_task(puller.pull(image))
        patient = asyncio.create_task(puller.pull(image))
        await asyncio.sleep(pause)
        impatient.cancel()
        pulled = await patient
        assert len(pulled.layers) == 2
        await asyncio.gather(impatient, return_exceptions=True)
        for id in list(puller.store.ids()):
            puller.store.discard(id)
        await puller.store.aclose()
    assert sorted(path.name for path in puller.store.directory.iterdir()) == ["last"]


async def test_a_layer_that_is_whole_is_known_even_if_its_maker_is_cancelled(puller: Puller) -> None:
    for step in range(12):

        async def make(draft: Path) -> LayerInfo:
            return LayerInfo(size_bytes=0, entries=0)

        task = asyncio.create_task(puller.store.add(make, set()))
        for _ in range(step):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        on_disk = {path.name for path in puller.store.directory.iterdir()} - {"last"}
        assert on_disk == set(puller.store.ids())


async def test_a_registry_that_knows_its_users(tmp_path: Path, layout: Path, puller: Puller) -> None:
    with registry(tmp_path / "private", users=True) as private:
        image = private.push(layout, "secret")
        with pytest.raises(ImageError, match="wants a user name and a password") as caught:
            await puller.pull(image)
        assert caught.value.kind == "ImageUnauthorized"
        with pytest.raises(ImageError, match="does not accept the user name 'alice'"):
            await puller.pull(image, credentials=Credentials(USER, "wrong"))
        assert len((await puller.pull(image, credentials=Credentials(USER, PASSWORD))).layers) == 2


async def test_what_is_not_there_is_said(hub: Registry, puller: Puller) -> None:
    with pytest.raises(ImageError, match="there is no") as caught:
        await puller.pull(f"{hub.host}/no/such:thing")
    assert caught.value.kind == "ImageNotFound"


async def test_a_registry_that_is_not_there_is_said(puller: Puller) -> None:
    with pytest.raises(ImageError, match="cannot be reached"):
        await puller.pull("127.0.0.1:1/a/b")


async def test_an_image_that_is_too_large_is_refused(hub: Registry, layout: Path, puller: Puller) -> None:
    image = hub.push(layout, "large")
    with pytest.raises(ImageError, match=r"room for|may: raise fs_capacity_bytes") as caught:
        await puller.pull(image, room=2000)
    assert caught.value.kind == "ImageTooLarge"
    assert not [path for path in puller.store.directory.iterdir() if path.name.startswith("draft")]


async def test_mirrors_are_asked_first_and_passed_over_when_they_fail(
    hub: Registry, layout: Path, puller: Puller
) -> None:
    hub.push(layout, "library/mirrored")
    access = RegistryAccess(mirrors={"docker.io": ("http://127.0.0.1:1", f"http://{hub.host}/")})
    assert len((await puller.pull("mirrored", access=access)).layers) == 2


async def test_a_store_opens_after_a_kill_at_any_point(hub: Registry, layout: Path, puller: Puller) -> None:
    pulled = await puller.pull(hub.push(layout, "killed"))
    folder = puller.store.directory
    (folder / "draft-last-3").write_text("3")
    (folder / "draft-0123/tree").mkdir(parents=True)
    (folder / "trash-1-0123").symlink_to("2")
    (folder / "9").mkdir()
    reopened = Puller(folder.parent)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "last"]
    assert reopened.trees(pulled) == puller.trees(pulled)
