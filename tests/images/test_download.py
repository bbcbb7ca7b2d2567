"""Layers on their way: connections that break, servers that were killed, registries that lie."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from sandbox_aio.images import download
from sandbox_aio.images.access import RegistryAccess
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.manifest import Descriptor
from sandbox_aio.images.registry import Registry
from tests.images.archives import file, layer
from tests.images.pulling import Puller
from tests.images.servers import Asked, Reply, Stock, breaking, digest_of, serving
from tests.registry import make_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.registry import Registry as RealRegistry

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
LARGE = random.Random(7).randbytes(1_500_000).hex()


def stock(*names: str, content: str = LARGE) -> Stock:
    """An image with one layer for each name, in which there is a file of that name."""
    plain = [layer(file(name, name + content), compress=False) for name in names]
    return Stock([(data, data) for data in plain])


def changed(images: Stock, change: Callable[[Asked, Reply], Reply]) -> Callable[[Asked], Reply]:
    """Answers as the stock's, of which those for layers are changed."""
    config = digest_of(images.config)

    def answer(asked: Asked) -> Reply:
        reply = images.answer(asked)
        return change(asked, reply) if "/blobs/" in asked.path and not asked.path.endswith(config) else reply

    return answer


async def refused(puller: Puller, answer: Callable[[Asked], Reply], reason: str, kind: str = "ImagePull") -> ImageError:
    """Pull what cannot be had, and see that nothing is left of it but what a next try can use."""
    async with serving(answer) as host:
        with pytest.raises(ImageError, match=reason) as caught:
            await puller.pull(f"{host}/a/b")
    assert caught.value.kind == kind
    assert puller.store.ids() == []
    puller.blobs.sweep()
    assert list(puller.blobs.directory.iterdir()) == []
    return caught.value


async def test_a_broken_connection_is_taken_up_where_it_broke(puller: Puller) -> None:
    images = stock("a")
    answer = changed(images, lambda asked, reply: attrs.evolve(reply, cut=1_100_000))
    async with serving(answer) as host:
        pulled = await puller.pull(f"{host}/a/b")
    assert puller.trees(pulled) == [{"a": "a" + LARGE}]
    offsets = [asked.offset for asked in images.requests("blobs")]
    assert offsets == [0, 1_100_000, 2_200_000]
    last = puller.progress[-1]
    assert (last.bytes_done, last.layers_done) == (last.bytes_total, 1)


async def test_a_registry_without_ranges_sends_it_again(puller: Puller) -> None:
    images = stock("a")
    cuts = iter((1_000_000, 2_000_000))
    body = images.blobs[str(images.document["layers"][0]["digest"])]
    answer = changed(images, lambda asked, reply: Reply(body=body, cut=next(cuts, None)))
    async with serving(answer) as host:
        assert puller.trees(await puller.pull(f"{host}/a/b")) == [{"a": "a" + LARGE}]
    last = puller.progress[-1]
    assert last.bytes_done == last.bytes_total


async def test_a_range_that_is_not_the_one_asked_for_is_not_used(puller: Puller) -> None:
    images = stock("a")
    wrong = iter(({"content-range": "bytes 0-9/10"}, {"content-range": "bytes 5-9/10"}, {"content-range": "nonsense"}))
    cut = iter((1_000_000,) * 4)

    def change(asked: Asked, reply: Reply) -> Reply:
        if reply.status == 206 and (headers := next(wrong, None)):
            return attrs.evolve(reply, headers=headers)
        return attrs.evolve(reply, cut=next(cut, None))

    async with serving(changed(images, change)) as host:
        assert puller.trees(await puller.pull(f"{host}/a/b")) == [{"a": "a" + LARGE}]


async def test_a_killed_server_leaves_what_the_next_one_takes_up(tmp_path: Path, puller: Puller) -> None:
    images = stock("a")
    end = asyncio.Event()

    def stall(asked: Asked, reply: Reply) -> Reply:
        return attrs.evolve(reply, cut=2_500_000, pause=end)

    async with serving(changed(images, stall)) as host:
        task = asyncio.create_task(puller.pull(f"{host}/a/b"))
        while not puller.progress or puller.progress[-1].bytes_done < 2 << 20:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    (part,) = puller.blobs.directory.iterdir()
    have = part.stat().st_size
    assert part.suffix == ".part"
    assert 2 << 20 <= have <= 2_500_000
    images.asked.clear()
    successor = Puller(tmp_path / "state")
    async with serving(images.answer) as host:
        assert successor.trees(await successor.pull(f"{host}/a/b")) == [{"a": "a" + LARGE}]
    assert [asked.offset for asked in images.requests("blobs")] == [have]
    assert successor.progress[-1].bytes_done == successor.progress[-1].bytes_total


PULL = """
import asyncio, sys
from pathlib import Path
from tests.images.pulling import Puller
asyncio.run(Puller(Path(sys.argv[1])).pull(sys.argv[2]))
"""


async def test_a_process_that_is_killed_outright_leaves_what_the_next_one_takes_up(tmp_path: Path) -> None:
    images, end = stock("a"), asyncio.Event()
    blobs = tmp_path / "state/blobs"
    name = str(images.document["layers"][0]["digest"]).replace(":", "-") + ".part"
    async with serving(changed(images, lambda asked, reply: attrs.evolve(reply, cut=2_500_000, pause=end))) as host:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PULL, str(tmp_path / "state"), f"{host}/a/b", cwd=ROOT
        )
        try:
            while not (blobs / name).exists() or (blobs / name).stat().st_size < 2 << 20:
                await asyncio.sleep(0.01)
        finally:
            process.kill()
            await process.wait()
    have = (blobs / name).stat().st_size
    images.asked.clear()
    successor = Puller(tmp_path / "state")
    async with serving(images.answer) as host:
        assert successor.trees(await successor.pull(f"{host}/a/b")) == [{"a": "a" + LARGE}]
    assert [asked.offset for asked in images.requests("blobs")] == [have]
    assert list(blobs.iterdir()) == []


@pytest.mark.root
async def test_a_real_registry_over_a_line_that_breaks(hub: RealRegistry, tmp_path: Path, puller: Puller) -> None:
    def large(root: Path) -> None:
        (root / "a").write_text(LARGE)

    image = hub.push(make_image(tmp_path / "image", [large]), "broken/line")
    async with breaking(hub.host, down=(300_000, 200_000, 500_000)) as host:
        assert puller.trees(await puller.pull(image.replace(hub.host, host))) == [{"a": LARGE}]
    assert puller.progress[-1].bytes_done == puller.progress[-1].bytes_total


@pytest.mark.parametrize("state", ["part", "whole", "too long"])
async def test_what_a_crash_has_damaged_is_downloaded_again(tmp_path: Path, puller: Puller, state: str) -> None:
    images = stock("a")
    name = str(images.document["layers"][0]["digest"]).replace(":", "-")
    size = {"part": 1_000_000, "whole": images.document["layers"][0]["size"], "too long": 4_000_000}[state]
    (puller.blobs.directory / (name if state == "whole" else f"{name}.part")).write_bytes(bytes(size))
    puller.blobs.open()
    async with serving(images.answer) as host:
        assert puller.trees(await puller.pull(f"{host}/a/b")) == [{"a": "a" + LARGE}]
    assert list(puller.blobs.directory.iterdir()) == []


async def test_one_download_is_shared_and_all_see_its_progress(tmp_path: Path, puller: Puller) -> None:
    images = stock("a", "b")
    others = [Puller(tmp_path / str(number)) for number in range(3)]
    for other in others:
        other.blobs = puller.blobs  # The blobs are shared, and the layers are not.
    async with serving(images.answer) as host:
        await asyncio.gather(*(one.pull(f"{host}/a/b") for one in (puller, *others)))
    assert len(images.requests("blobs")) == 2
    for one in (puller, *others):
        assert one.progress[-1].bytes_done == one.progress[-1].bytes_total > 6_000_000
        assert len(one.store.ids()) == 2


async def test_another_one_downloads_when_the_first_gives_up(tmp_path: Path, puller: Puller) -> None:
    images = stock("a")
    end = asyncio.Event()
    replies = iter((500_000,))

    def change(asked: Asked, reply: Reply) -> Reply:
        cut = next(replies, None)
        return attrs.evolve(reply, cut=cut, pause=None if cut is None else end)

    other = Puller(tmp_path / "other")
    other.blobs = puller.blobs
    async with serving(changed(images, change)) as host:
        first = asyncio.create_task(puller.pull(f"{host}/a/b"))
        while not images.requests("blobs"):
            await asyncio.sleep(0.01)
        second = asyncio.create_task(other.pull(f"{host}/a/b"))
        while len(images.requests("manifests")) < 2:
            await asyncio.sleep(0.01)
        first.cancel()
        assert other.trees(await second) == [{"a": "a" + LARGE}]
        await asyncio.gather(first, return_exceptions=True)
    last = other.progress[-1]
    assert last.bytes_done == last.bytes_total


async def test_at_most_four_layers_are_on_their_way_at_once(puller: Puller) -> None:
    images = stock(*"abcdefgh", content="x")
    config = digest_of(images.config)
    now, most, enough = 0, 0, asyncio.Event()

    async def answer(asked: Asked) -> Reply:
        nonlocal now, most
        reply = images.answer(asked)
        if "/blobs/" in asked.path and not asked.path.endswith(config):
            now += 1
            most = max(most, now)
            if now == 4:
                enough.set()
            await enough.wait()
            now -= 1
        return reply

    async with serving(answer) as host:
        assert len((await puller.pull(f"{host}/a/b")).layers) == 8
    assert most == 4


async def test_what_is_unpacked_makes_room_for_what_comes(puller: Puller) -> None:
    images, end = stock(*"abc"), asyncio.Event()
    first, _, last = (str(layer["digest"]) for layer in images.document["layers"])

    async def answer(asked: Asked) -> Reply:
        if asked.path.endswith(last):
            await end.wait()
        return images.answer(asked)

    async with serving(answer) as host:
        task = asyncio.create_task(puller.pull(f"{host}/a/b"))
        while len(puller.store.ids()) < 2:
            await asyncio.sleep(0.01)
        while any(first in path.name.replace("-", ":") for path in puller.blobs.directory.iterdir()):
            await asyncio.sleep(0.01)
        end.set()
        assert len((await task).layers) == 3
    assert list(puller.blobs.directory.iterdir()) == []


async def test_the_same_layer_twice_is_downloaded_once(puller: Puller) -> None:
    images = stock("a", "a")
    async with serving(images.answer) as host:
        assert len((await puller.pull(f"{host}/a/b")).layers) == 2
    assert len(images.requests("blobs")) == 1
    assert puller.progress[-1].bytes_done == puller.progress[-1].bytes_total


# Registries that lie.


async def test_a_layer_of_another_digest_is_refused(puller: Puller) -> None:
    answer = changed(stock("a"), lambda asked, reply: attrs.evolve(reply, body=bytes(len(reply.body))))
    await refused(puller, answer, "is not what its digest says")


async def test_a_layer_that_unpacks_to_another_digest_is_refused(puller: Puller) -> None:
    plain = layer(file("a"), compress=False)
    images = Stock([(plain, plain + b"\0" * 512)])
    await refused(puller, images.answer, "unpacks to sha256:", "ImageUnpack")


async def test_a_layer_that_is_longer_than_the_manifest_says_is_refused(puller: Puller) -> None:
    images = stock("a")
    images.document["layers"][0]["size"] -= 1
    await refused(puller, images.answer, "longer than the")


async def test_a_layer_that_is_shorter_than_the_manifest_says_is_refused(puller: Puller) -> None:
    images = stock("a")
    images.document["layers"][0]["size"] += 1
    await refused(puller, images.answer, r"has 3,\d+,\d+ bytes, and the manifest says 3,")


async def test_a_size_is_not_believed_because_the_blob_is_there(puller: Puller) -> None:
    images = stock("a")
    entry = images.document["layers"][0]
    honest = Descriptor(digest=entry["digest"], size=entry["size"])
    async with serving(images.answer) as host, Registry(host, RegistryAccess()) as there:
        async with puller.blobs.hold(there, "a/b", honest, lambda size: None):
            with pytest.raises(ImageError, match="and the manifest says"):
                async with puller.blobs.hold(there, "c/d", attrs.evolve(honest, size=7), lambda size: None):
                    pass
        assert list(puller.blobs.directory.iterdir()) == []


async def test_a_layer_that_never_gets_on_is_given_up(puller: Puller) -> None:
    images = stock("a")
    await refused(puller, changed(images, lambda asked, reply: attrs.evolve(reply, cut=10)), "breaks off after 50 of")
    assert len(images.requests("blobs")) == 5


async def test_a_registry_that_falls_silent_is_asked_again(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE", 0.2)
    images, end = stock("a"), asyncio.Event()
    cuts = iter((1_000_000,))

    def change(asked: Asked, reply: Reply) -> Reply:
        cut = next(cuts, None)
        return attrs.evolve(reply, cut=cut, pause=None if cut is None else end)

    async with serving(changed(images, change)) as host:
        assert puller.trees(await puller.pull(f"{host}/a/b")) == [{"a": "a" + LARGE}]
    assert [asked.offset for asked in images.requests("blobs")] == [0, 1_000_000]


async def test_a_registry_that_only_drips_is_given_up(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE", 0.2)
    images = stock("a")
    await refused(puller, changed(images, lambda asked, reply: attrs.evolve(reply, drip=0.02)), "breaks off after")
    offsets = [asked.offset for asked in images.requests("blobs")]
    assert len(offsets) == 5
    assert offsets == sorted(set(offsets))  # Each took up where the last was given up.


async def test_an_image_that_cannot_fit_is_refused_before_it_is_downloaded(puller: Puller) -> None:
    images = stock("a")
    images.document["layers"][0]["size"] = 1 << 38
    await refused(puller, images.answer, "raise fs_capacity_bytes", "ImageTooLarge")
    assert images.requests("blobs") == []


async def test_an_empty_layer_is_no_layer(puller: Puller) -> None:
    await refused(puller, Stock([(b"", b"")]).answer, "no tar archive|ends", "ImageUnpack")


@pytest.mark.parametrize("content_encoding", ["gzip", "br"])
async def test_nothing_is_decoded_on_the_way(puller: Puller, content_encoding: str) -> None:
    images = stock("a")

    def answer(asked: Asked) -> Reply:
        assert asked.headers["accept-encoding"] == "identity"
        return attrs.evolve(images.answer(asked), headers={"content-encoding": content_encoding})

    async with serving(answer) as host:
        assert len((await puller.pull(f"{host}/a/b")).layers) == 1


async def test_a_mirror_that_lies_is_forsaken(puller: Puller) -> None:
    images = stock("a")
    liar = changed(stock("a"), lambda asked, reply: attrs.evolve(reply, body=bytes(len(reply.body))))
    async with serving(liar) as mirror, serving(images.answer) as own:
        access = RegistryAccess(mirrors={own: (f"http://{mirror}",)})
        assert puller.trees(await puller.pull(f"{own}/a/b", access=access)) == [{"a": "a" + LARGE}]
    assert len(images.requests("blobs")) == 1
    assert puller.progress[-1].bytes_done == puller.progress[-1].bytes_total


async def test_cancelling_at_any_instant_never_writes_into_another_file(tmp_path: Path, puller: Puller) -> None:
    images = stock("a")
    bystander = tmp_path / "bystander"
    async with serving(images.answer) as host:
        for step in range(40):
            task = asyncio.create_task(puller.pull(f"{host}/a/b"))
            while not task.done() and len(puller.progress) < 2 + step % 5:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            puller.progress.clear()
            # The next file gets the number that the download's had.
            descriptor = os.open(bystander, os.O_RDWR | os.O_CREAT)
            await asyncio.to_thread(os.fsync, descriptor)
            assert os.fstat(descriptor).st_size == 0
            os.close(descriptor)
