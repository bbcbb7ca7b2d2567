"""The store of layers: one making of each, nothing left of what failed, and what a kill leaves."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.images.layers import LayerInfo, LayerStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

CHURN = """
import asyncio, sys
from pathlib import Path
from sandbox_aio.images.layers import LayerInfo, LayerStore

async def make(draft):
    for number in range(40):
        (draft / "tree" / str(number) / "a" / "b").mkdir(parents=True)
        (draft / "tree" / str(number) / "a" / "file").write_text("x")
    return LayerInfo(size_bytes=40, entries=160)

async def main():
    store = LayerStore(Path(sys.argv[1]))
    store.open()
    for id in store.ids():
        store.discard(id)
    while True:
        id = await store.add(make, set())
        print(id, flush=True)
        store.discard(id)
        print(await store.add(make, set()), flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LayerStore]:
    made = LayerStore(tmp_path / "layers")
    made.open()
    yield made
    await made.aclose()


def names(store: LayerStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


async def make(draft: Path) -> LayerInfo:
    (draft / "tree/file").write_text("x")
    return LayerInfo(chain_id="sha256:1", size_bytes=1, entries=1, notes=("note",))


async def test_what_is_made_is_found_again(store: LayerStore) -> None:
    pins: set[str] = set()
    id = await store.ensure("sha256:1", make, pins)
    again = LayerStore(store.directory)
    again.open()
    assert (id, pins, again.ids(), again.find("sha256:1")) == ("1", {"1"}, ["1"], "1")
    assert again.describe("1") == store.describe("1") == await make_info()
    assert (again.tree("1") / "file").read_text() == "x"


async def make_info() -> LayerInfo:
    return LayerInfo(chain_id="sha256:1", size_bytes=1, entries=1, notes=("note",))


async def test_many_that_ask_at_once_get_one(store: LayerStore) -> None:
    made = 0

    async def slow(draft: Path) -> LayerInfo:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return await make(draft)

    pins: set[str] = set()
    found = await asyncio.gather(*(store.ensure("sha256:1", slow, pins) for _ in range(20)))
    assert (set(found), made, pins) == ({"1"}, 1, {"1"})


async def test_a_failure_leaves_nothing_and_is_not_for_those_who_wait(store: LayerStore) -> None:
    begun = asyncio.Event()

    async def fail(draft: Path) -> LayerInfo:
        (draft / "tree/half").mkdir(mode=0)
        begun.set()
        await asyncio.sleep(0)
        raise OSError("full")

    first = asyncio.create_task(store.ensure("sha256:1", fail, set()))
    await begun.wait()
    second = asyncio.create_task(store.ensure("sha256:1", make, set()))
    with pytest.raises(OSError, match="full"):
        await first
    assert await second == "1"
    assert names(store) == ["1", "last"]


async def test_one_that_is_cancelled_leaves_nothing_and_another_makes_it(store: LayerStore) -> None:
    begun = asyncio.Event()

    async def hang(draft: Path) -> LayerInfo:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    first = asyncio.create_task(store.ensure("sha256:1", hang, set()))
    await begun.wait()
    second = asyncio.create_task(store.ensure("sha256:1", make, set()))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == "1"
    assert names(store) == ["1", "last"]


async def test_numbers_are_not_given_again(store: LayerStore) -> None:
    for number in ("1", "2"):
        assert await store.add(make, set()) == number
        store.discard(number)
    await store.aclose()
    assert names(store) == ["last"]
    again = LayerStore(store.directory)
    again.open()
    assert await again.add(make, set()) == "3"


async def test_what_is_discarded_is_gone_at_once(store: LayerStore) -> None:
    id = await store.ensure("sha256:1", make, set())
    store.discard(id)
    assert (store.ids(), store.find("sha256:1"), store.tree(id).exists()) == ([], None, False)
    assert await store.ensure("sha256:1", make, set()) == "2"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"size_bytes": 1, "entries": 1, "notes": 1}', None])
async def test_a_layer_of_which_nothing_is_known_is_removed(store: LayerStore, damage: bytes | None) -> None:
    await store.add(make, set())
    path = store.directory / "1/layer.json"
    path.unlink() if damage is None else path.write_bytes(damage)
    again = LayerStore(store.directory)
    again.open()
    assert (again.ids(), names(again)) == ([], ["last"])
    assert await again.add(make, set()) == "2"


async def test_what_a_removal_has_left_when_it_was_killed(store: LayerStore) -> None:
    """It had moved directories up beside the first one, and not all of them."""
    for name in ("trash-1-ab/tree/x/y", "trash-1-ab.1/z/w", "trash-1-ab.1.1/v/u", "draft-cd/tree/q/r", "draft-cd.1/t"):
        (store.directory / name).mkdir(parents=True)
    again = LayerStore(store.directory)
    again.open()
    assert names(again) == []


async def test_a_store_that_is_killed_at_any_instant_is_whole(tmp_path: Path) -> None:
    """Ten times in a row, in the same directory, so that what one kill leaves is there for the next."""
    directory, pause, highest = tmp_path / "layers", random.Random(4), 0
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", CHURN, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        wanted = pause.randrange(1, 12)
        lines = [first, *(process.stdout.readline() for _ in range(wanted))]
        process.send_signal(signal.SIGKILL)
        rest, errors = process.communicate()
        told = [int(line) for line in b"".join([*lines, rest]).split()]
        assert told == sorted(set(told)) and told[0] > highest, errors.decode()
        highest = told[-1]
    again = LayerStore(directory)
    again.open()
    kept = [path for path in names(again) if path != "last"]
    assert sorted(again.ids()) == kept
    for id in kept:
        assert len(os.listdir(again.tree(id))) == 40
        assert json.loads((directory / id / "layer.json").read_text())["entries"] == 160
