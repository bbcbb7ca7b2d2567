"""Snapshots from a real registry's images and from captures, over a runtime whose captures are small. Wire protocol,
section 1.10.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from sandbox_aio.server.snapshot import TRANSITIONS, Event, Origin, Snapshot, SnapshotStatus
from tests.registry import PASSWORD, USER, make_image, registry
from tests.server.fakes import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from sandbox_aio.server.serve import Ready, Server
    from tests.registry import Registry
    from tests.server.fakes import FakeRuntime

pytestmark = [pytest.mark.anyio, pytest.mark.root]

ROOM = 1 << 24
CONFIG = {"config.user": ["alice"], "config.workingdir": ["/srv"], "config.env": ["A=image", "B=image"]}


def first(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text("ID=small\n")


def second(root: Path) -> None:
    (root / "etc/more").write_text("more" * 1000)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("image"), [first, second], CONFIG)


@pytest.fixture(scope="module")
def image(hub: Registry, layout: Path) -> str:
    hub.push(layout, "team/small", tag="v2")
    return hub.push(layout, "team/small", tag="v1")


async def until_done(http: httpx.AsyncClient, reference: str) -> dict[str, Any]:
    while True:
        snapshot: dict[str, Any] = (await http.get(f"/snapshots/{reference}")).json()
        if snapshot["status"] != "building":
            return snapshot
        await asyncio.sleep(0.005)


async def make(http: httpx.AsyncClient, image: str, name: str = "small", **members: Any) -> dict[str, Any]:
    body = {"name": name, "docker_image": image, "fs_capacity_bytes": ROOM, **members}
    answer = await http.post("/snapshots", json=body)
    assert answer.status_code == 201, answer.text
    return await until_done(http, answer.json()["id"])


async def layers_left(server: Server) -> list[str]:
    """What is in the store when all is removed that is to be."""
    snapshots = server.snapshots
    while (collecting := snapshots._collecting) is not None:
        await asyncio.wait([collecting])
    await snapshots.layers.aclose()
    assert sorted(path.name for path in snapshots.layers.directory.iterdir() if path.name != "last") == sorted(
        snapshots.layers.ids()
    )
    assert list(snapshots.blobs.directory.iterdir()) == []
    return sorted(snapshots.layers.ids(), key=int)


@pytest.mark.parametrize("status", SnapshotStatus)
@pytest.mark.parametrize("event", Event)
def test_every_change_is_in_the_table_or_does_not_happen(status: SnapshotStatus, event: Event) -> None:
    before = Snapshot(id="i", name="n", origin=Origin.IMAGE, status=status, fs_capacity_bytes=1)
    after = before.after(event, status_message="m")
    expected = TRANSITIONS[status].get(event)
    assert (None if after is None else (after.status, after.status_message)) == (expected and (expected, "m"))


async def test_an_image_becomes_a_snapshot_that_sandboxes_are_made_from(
    http: httpx.AsyncClient, server: Server, runtime: FakeRuntime, image: str
) -> None:
    snapshot = await make(
        http, image, labels={"team": "a", "kind": "image"}, run_config={"env_vars": {"B": "asked"}}, description="it"
    )
    assert (snapshot["status"], snapshot["tags"], snapshot["status_message"]) == ("ready", ["v1"], None)
    assert snapshot["image_digest"].startswith("sha256:")
    assert (snapshot["docker_image"], snapshot["fs_capacity_bytes"]) == (image, ROOM)
    assert snapshot["fs_used_bytes"] == len("ID=small\n") + 4000
    asked = {"user": "alice", "work_dir": "/srv", "env_vars": {"A": "image", "B": "asked"}}
    assert snapshot["run_config"] == asked
    body = {
        "snapshot": "small:v1",
        "labels": {"kind": "box"},
        "run_config": {"work_dir": "/tmp", "env_vars": {"C": "c"}},
    }
    box = (await http.post("/boxes", json=body)).json()
    assert box["labels"] == {"team": "a", "kind": "box"}
    assert (box["snapshot_id"], box["fs_capacity_bytes"]) == (snapshot["id"], ROOM)
    spec = runtime.daemons[box["id"]].spec
    assert (spec.base, spec.user, spec.work_dir) == (None, "alice", "/tmp")
    assert {name: spec.env_vars[name] for name in "ABC"} == {"A": "image", "B": "asked", "C": "c"}
    assert list(spec.layers) == [*reversed(await layers_left(server))]


async def test_a_name_leads_to_latest_or_else_to_the_newest_without_a_tag(http: httpx.AsyncClient, image: str) -> None:
    one = await make(http, image, "a/b", tag="latest")
    two = await make(http, image, "a/b", tag="latest")
    assert (await http.get("/snapshots/a%2Fb")).json()["id"] == two["id"]
    assert (await http.get(f"/snapshots/{one['id'].upper()}")).json()["tags"] == []
    for form in ("a%2Fb:latest", "a%2Fb%3Alatest", "a%2fb%3alatest"):
        assert (await http.get(f"/snapshots/{form}")).json()["id"] == two["id"]
        found = (await http.get(f"/snapshots-by-name/{form.partition('b')[0]}b")).json()
        assert found == {"name": "a/b", "tags": [{"tag": "latest", "snapshot_id": two["id"]}]}
    assert (await http.delete("/snapshots/a%2Fb%3Alatest")).status_code == 204
    assert (await http.get(f"/snapshots/{two['id']}")).status_code == 404
    assert (await http.get("/snapshots/a%2Fb")).json()["id"] == one["id"]  # It has no tag and is ready.
    assert (await http.get("/snapshots/a%2Fb:latest")).status_code == 404
    assert (await http.get("/snapshots-by-name/a%2Fb")).json()["tags"] == []


async def test_a_tag_moves_when_the_new_snapshot_is_ready_and_not_before(http: httpx.AsyncClient, image: str) -> None:
    good = await make(http, image, tag="prod")
    bad = await make(http, f"{image}-not", tag="prod")
    assert bad["status"] == "failed"
    assert "there is no" in bad["status_message"]
    assert (await http.get("/snapshots/small:prod")).json()["id"] == good["id"]
    refused = await http.post("/boxes", json={"snapshot_id": bad["id"]})
    assert (refused.status_code, refused.json()["detail"]["error"]) == (400, "SnapshotNotReady")
    assert "there is no" in refused.json()["detail"]["message"]
    assert (await http.post(f"/snapshots/{bad['id']}/tags", json={"tag": "x"})).status_code == 409
    tagged = await http.post("/snapshots/small:prod/tags", json={"tag": "next"})
    assert (tagged.status_code, tagged.json()["tags"]) == (201, ["next", "prod"])
    elsewhere = await http.post("/snapshots/small:prod/tags", json={"tag": "v9", "name": "else/where"})
    assert elsewhere.json()["tags"] == ["next", "prod"]
    assert (await http.get("/snapshots/else%2Fwhere:v9")).json()["id"] == good["id"]
    for tag in ("small:next", "small:prod"):
        assert (await http.delete(f"/snapshots/{tag}")).status_code == 204
    assert (await http.get(f"/snapshots/{good['id']}")).json()["tags"] == []
    assert (await http.delete("/snapshots/else%2Fwhere:v9")).status_code == 204
    assert (await http.get(f"/snapshots/{good['id']}")).status_code == 404


async def test_sandboxes_keep_what_they_are_made_from(
    http: httpx.AsyncClient, server: Server, runtime: FakeRuntime, image: str
) -> None:
    snapshot = await make(http, image)
    box = (await http.post("/boxes", json={"snapshot": "small:v1"})).json()
    assert (await http.delete("/snapshots/small:v1")).status_code == 204
    assert (await http.get(f"/snapshots/{snapshot['id']}")).json()["tags"] == []  # In use: it stays, without a name.
    assert (await http.delete(f"/snapshots/{snapshot['id']}")).status_code == 204
    assert (await http.get(f"/snapshots/{snapshot['id']}")).status_code == 404
    assert len(await layers_left(server)) == 2
    await http.post(f"/boxes/{box['name']}/stop")
    await http.post(f"/boxes/{box['name']}/start")
    assert (await http.get(f"/{box['id']}/download?path=x")).status_code == 200  # The fake's daemon answers.
    assert (await http.delete(f"/boxes/{box['name']}")).status_code == 204
    assert await layers_left(server) == []


async def test_captures_are_one_layer_more_and_share_those_below(
    http: httpx.AsyncClient, server: Server, runtime: FakeRuntime, image: str
) -> None:
    below = await make(http, image)
    config = {"user": "bob", "work_dir": "/var", "env_vars": {"SECRET": "s"}}
    body = {"snapshot_id": below["id"], "run_config": config, "labels": {"k": "v"}}
    box = (await http.post("/boxes", json=body)).json()
    taken = await http.post(f"/boxes/{box['name']}/snapshot", json={"name": "mine"})
    assert taken.status_code == 201, taken.text
    mine = await until_done(http, taken.json()["id"])
    assert (mine["status"], mine["tags"], mine["source_sandbox_id"]) == ("ready", ["latest"], box["id"])
    kept = {"user": "bob", "work_dir": "/var", "env_vars": {"A": "image", "B": "image"}}
    assert mine["run_config"] == kept
    assert mine["labels"] == {}
    assert mine["fs_used_bytes"] == below["fs_used_bytes"] + len(box["id"])
    fork = (await http.post("/boxes", json={"snapshot": "mine"})).json()
    assert (await http.post(f"/boxes/{fork['name']}/stop")).status_code == 204
    body = {"name": "nested", "tag": "v1", "include": ["labels"], "run_config": {"user": "carol"}}
    nested = await until_done(http, (await http.post(f"/boxes/{fork['id']}/snapshot", json=body)).json()["id"])
    assert (nested["run_config"]["user"], nested["tags"]) == ("carol", ["v1"])
    again = (await http.post("/boxes", json={"snapshot": "nested:v1"})).json()
    stack = [runtime.daemons[one["id"]].spec.layers for one in (box, fork, again)]
    assert stack[1][1:] == stack[0]
    assert stack[2][1:] == stack[1]
    assert len(await layers_left(server)) == 4
    for one in (box, fork):
        await http.delete(f"/boxes/{one['id']}")
    for snapshot in (below, mine):
        await http.delete(f"/snapshots/{snapshot['id']}")
    assert len(await layers_left(server)) == 4
    await http.delete(f"/snapshots/{nested['id']}")
    await http.delete(f"/boxes/{again['id']}")
    assert await layers_left(server) == []


async def test_a_capture_that_fails_says_why_and_leaves_nothing(
    http: httpx.AsyncClient, server: Server, runtime: FakeRuntime
) -> None:
    box = (await http.post("/boxes", json={})).json()
    small = await http.post(f"/boxes/{box['id']}/snapshot", json={"name": "tiny", "fs_capacity_bytes": 1})
    failed = await until_done(http, small.json()["id"])
    assert (failed["status"], failed["tags"]) == ("failed", [])
    assert "raise fs_capacity_bytes" in failed["status_message"]
    runtime.stuck = RuntimeFailure("the disk is full")
    full = await until_done(http, (await http.post(f"/boxes/{box['id']}/snapshot", json={"name": "x"})).json()["id"])
    assert full["status_message"] == "the disk is full"
    runtime.stuck = None
    assert await layers_left(server) == []
    runtime.on_exit(box["id"], "killed")
    answer = await http.post(f"/boxes/{box['id']}/snapshot", json={"name": "x"})
    assert (answer.status_code, answer.json()["detail"]["error"]) == (409, "NotReady")
    assert (await http.post("/boxes/none/snapshot", json={"name": "x"})).status_code == 404


async def test_two_pulls_of_one_image_at_once_unpack_it_once(
    http: httpx.AsyncClient, server: Server, image: str
) -> None:
    made = await asyncio.gather(*(make(http, image, f"n-{number}") for number in range(8)))
    assert {snapshot["status"] for snapshot in made} == {"ready"}
    assert await layers_left(server) == ["1", "2"]


async def test_what_is_deleted_while_it_is_built_leaves_nothing(
    http: httpx.AsyncClient, server: Server, image: str
) -> None:
    for turns in (0, 1, 2, 5, 10, 20):
        body = {"name": "gone", "docker_image": image, "fs_capacity_bytes": ROOM}
        asking = asyncio.create_task(http.post("/snapshots", json=body))
        while not (known := list(server.snapshots.index)):
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0.001)
        deleted = await asyncio.gather(*(http.delete(f"/snapshots/{known[0].id}") for _ in range(2)))
        assert {answer.status_code for answer in deleted} <= {204, 404}
        await asking
        assert (await http.get(f"/snapshots/{known[0].id}")).status_code == 404
        assert await layers_left(server) == []


async def test_an_image_that_is_too_large_fails_with_a_sentence(
    http: httpx.AsyncClient, server: Server, image: str
) -> None:
    failed = await make(http, image, fs_capacity_bytes=1000)
    assert failed["status"] == "failed"
    assert "fs_capacity_bytes" in failed["status_message"]
    assert await layers_left(server) == []


async def test_a_registry_lends_its_credentials(
    http: httpx.AsyncClient, tmp_path: Path, layout: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with registry(tmp_path / "private", users=True) as private:
        image = private.push(layout, "secret")
        body = {"name": "private", "url": f"http://{private.host}", "username": USER, "password": PASSWORD}
        kept = (await http.post("/registries", json=body)).json()
        assert (await make(http, image))["status"] == "failed"
        made = await make(http, image, registry_id=kept["id"])
        assert (made["status"], made["registry_id"]) == ("ready", kept["id"])
        asked = {"name": "x", "docker_image": "debian", "fs_capacity_bytes": 1, "registry_id": kept["id"]}
        wrong = await http.post("/snapshots", json=asked)
        assert (wrong.status_code, wrong.json()["detail"]["error"]) == (400, "InvalidRequest")
        asked["registry_id"] = "none"
        assert (await http.post("/snapshots", json=asked)).json()["detail"]["error"] == "RegistryNotFound"
        assert PASSWORD not in caplog.text


async def test_lists_are_filtered_sorted_and_paged(http: httpx.AsyncClient, image: str) -> None:
    made = [await make(http, image, f"list-{number}", labels={"n": str(number)}) for number in range(3)]
    failed = await make(http, f"{image}-not", "list-3")
    for asked, expected in [
        ("name_contains=list-&sort_by=name&sort_order=asc", ["list-0", "list-1", "list-2", "list-3"]),
        ("name_contains=list-&sort_by=created_at", ["list-3", "list-2", "list-1", "list-0"]),
        ("name_contains=list-&status=failed", ["list-3"]),
        ("label=n%3D1&created_by=me", ["list-1"]),
        ("limit=2&offset=1", ["list-0", "list-1"]),
        ("label=n=7", []),
    ]:
        page = (await http.get(f"/snapshots?{asked}")).json()
        assert [snapshot["name"] for snapshot in page["snapshots"]] == expected, asked
        assert page["items"] == page["snapshots"]
    page = (await http.get("/snapshots?page_size=3")).json()
    assert [snapshot["name"] for snapshot in page["items"]] == ["host", "list-0", "list-1"]
    page = (await http.get(f"/snapshots?page_size=3&cursor={page['next_cursor']}")).json()
    assert [one["id"] for one in page["items"]] == [made[2]["id"], failed["id"]]
    assert page["next_cursor"] is None
    for asked in ("status=odd", "sort_by=size", "sort_order=up&sort_by=name", "limit=0", "offset=-1", "created_by=you"):
        assert (await http.get(f"/snapshots?{asked}")).status_code == 400, asked


async def test_both_prefixes_lead_to_them(http: httpx.AsyncClient, ready: Ready, image: str) -> None:
    made = await make(http, image)
    for path in ("/snapshots/small:v1", f"/snapshots/{made['id']}"):
        assert (await http.get(f"{ready.url}/v2/sandboxes{path}")).json() == made
    assert (await http.delete(f"{ready.url}/v2/sandboxes/snapshots/small%3Av1")).status_code == 204


async def test_the_runtimes_own_snapshots_stay_as_they_are(http: httpx.AsyncClient) -> None:
    for reference in ("host", "host:latest", HOST.id):
        assert (await http.get(f"/snapshots/{reference}")).json()["id"] == HOST.id
        for answer in (
            await http.delete(f"/snapshots/{reference}"),
            await http.post(f"/snapshots/{reference}/tags", json={"tag": "mine"}),
        ):
            assert (answer.status_code, answer.json()["detail"]["error"]) == (403, "Forbidden")
    assert (await http.get("/snapshots-by-name/host")).json()["tags"] == [{"tag": "latest", "snapshot_id": HOST.id}]
    box = (await http.post("/boxes", json={})).json()
    for path, body in (
        ("/snapshots", {"name": "host", "docker_image": "debian", "fs_capacity_bytes": 1}),
        (f"/boxes/{box['id']}/snapshot", {"name": "host"}),
    ):
        answer = await http.post(path, json=body)
        assert (answer.status_code, answer.json()["detail"]["error"]) == (409, "ResourceNameConflict")


LABELS = {str(number): "" for number in range(129)}


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"name": "Capital"}, 422, "name"),
        ({"name": "a//b"}, 422, "name"),
        ({"name": "a" * 256}, 422, "name"),
        ({"name": "name:tag"}, 422, "name"),
        ({"name": "6f0c0a52-3e0a-5d0e-9e51-0a4f3b1f7d10"}, 422, "name"),
        ({"name": "system/x"}, 403, "system/"),
        ({"name": "system"}, 403, "system/"),
        ({"tag": ".x"}, 422, "tag"),
        ({"tag": "x" * 129}, 422, "tag"),
        ({"docker_image": "UPPER/case"}, 422, "docker_image"),
        ({"docker_image": "x@sha256:1"}, 422, "docker_image"),
        ({"fs_capacity_bytes": 0}, 422, "fs_capacity_bytes"),
        ({"fs_capacity_bytes": "1"}, 422, "fs_capacity_bytes"),
        ({"description": "x" * 1025}, 422, "description"),
        ({"labels": LABELS}, 422, "labels"),
        ({"labels": {"com.langchain.x": ""}}, 422, "labels"),
        ({"run_config": {"work_dir": "relative"}}, 422, "work_dir"),
        ({"run_config": {"user": "a b"}}, 422, "user"),
        ({"run_config": {"env_vars": {"A=B": ""}}}, 422, "env_vars"),
        ({"unknown": 1}, 422, "unknown"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    http: httpx.AsyncClient, change: dict[str, Any], status: int, named: str
) -> None:
    body = {"name": "x", "docker_image": "debian", "fs_capacity_bytes": 1, **change}
    answer = await http.post("/snapshots", json=body)
    assert answer.status_code == status, answer.text
    assert named in answer.text
    assert len((await http.get("/snapshots")).json()["items"]) == 1


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"docker_image": "built"}, 501, "docker_image"),
        ({"checkpoint": True}, 501, "checkpoint"),
        ({"include_memory": True}, 501, "include_memory"),
        ({"image_config": {"cmd": ["x"]}}, 501, "image_config"),
        ({"include": ["all"]}, 501, "include"),
        ({"include": ["env_vars", "labels"]}, 501, "env_vars"),
        ({"include": ["everything"]}, 422, "include"),
        ({"name": "A"}, 422, "name"),
        ({"tag": ""}, 422, "tag"),
        ({"fs_capacity_bytes": -1}, 422, "fs_capacity_bytes"),
        ({"name": "system/x"}, 403, "system/"),
    ],
)
async def test_what_a_capture_cannot_be_is_refused_by_name(
    http: httpx.AsyncClient, change: dict[str, Any], status: int, named: str
) -> None:
    box = (await http.post("/boxes", json={})).json()
    answer = await http.post(f"/boxes/{box['id']}/snapshot", json={"name": "x", **change})
    assert answer.status_code == status, answer.text
    assert named in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/snapshots/none", 404),
        ("GET", "/snapshots/host:other", 404),
        ("GET", "/snapshots/6f0c0a52-3e0a-5d0e-9e51-000000000000", 404),
        ("DELETE", "/snapshots/none:x", 404),
        ("POST", "/snapshots/none/tags", 422),
        ("GET", "/snapshots-by-name/none", 404),
        ("GET", "/snapshots-by-name/host:latest", 400),
        ("GET", "/snapshots-by-name/host%3Alatest", 400),
        ("PUT", "/snapshots/host", 405),
    ],
)
async def test_errors_are_canonical(http: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await http.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == status
    if status != 422:
        assert answer.json()["detail"].keys() == {"error", "message", "error_id"}
