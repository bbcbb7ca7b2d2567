"""The control plane over HTTP. Wire protocol, sections 1 and 2."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from tests.server.fakes import HOST, FakeRuntime

if TYPE_CHECKING:
    from sandbox_aio.server.serve import Ready

pytestmark = pytest.mark.anyio


async def create(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/boxes", json={"wait_for_ready": True, "timeout": 30, **body})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


async def test_a_sandbox_is_created_found_and_deleted(http: httpx.AsyncClient, ready: Ready) -> None:
    box = await create(http, snapshot_id=HOST.id, labels={"team": "a"}, vcpus=2, mem_bytes=2**30)
    assert box["status"] == "ready"
    assert box["dataplane_url"] == f"{ready.endpoint}/{box['id']}"
    assert box["snapshot_id"] == HOST.id
    assert (box["vcpus"], box["mem_bytes"], box["labels"]) == (2, 2**30, {"team": "a"})
    for reference in (box["name"], box["id"]):
        assert (await http.get(f"/boxes/{reference}")).json() == box
        assert (await http.get(f"/boxes/{reference}/status")).json() == {"status": "ready", "status_message": None}
    listed = (await http.get("/boxes")).json()
    assert listed["sandboxes"] == listed["items"] == [box]
    assert (await http.delete(f"/boxes/{box['name']}")).status_code == 204
    again = await http.delete(f"/boxes/{box['name']}")
    assert again.status_code == 404
    assert again.json()["detail"]["error"] == "SandboxNotFound"
    assert (await http.get("/boxes")).json()["sandboxes"] == []


async def test_the_short_base_answers_alike(http: httpx.AsyncClient, ready: Ready) -> None:
    box = await create(http)
    assert (await http.get(f"{ready.url}/v2/sandboxes/boxes/{box['name']}")).json() == box


@pytest.mark.parametrize("reference", ["host", "host:latest", "host%3Alatest", HOST.id, HOST.id.upper()])
async def test_a_snapshot_is_found_by_uuid_name_and_tag(http: httpx.AsyncClient, reference: str) -> None:
    found = (await http.get(f"/snapshots/{reference}")).json()
    assert (found["id"], found["status"], found["tags"]) == (HOST.id, "ready", ["latest"])


async def test_snapshots_are_listed(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/snapshots?limit=1")).json()
    assert [snapshot["name"] for snapshot in listed["snapshots"]] == ["host"]
    assert listed["items"] == listed["snapshots"]
    assert (await http.get("/snapshots?name_contains=nothing")).json()["snapshots"] == []
    missing = await http.get("/snapshots/ns%2Fimage:v1")
    assert missing.status_code == 404
    assert "'ns/image:v1'" in missing.json()["detail"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "Bad_Name"}, "name"),
        ({"name": "6f0c0a52-3e0a-5d0e-9e51-0a4f3b1f7d10"}, "name"),
        ({"vcpus": "2"}, "vcpus"),
        ({"vcpus": True}, "vcpus"),
        ({"timeout": -1}, "timeout"),
        ({"idle_ttl_seconds": -60}, "idle_ttl_seconds"),
        ({"labels": {"com.langchain.x": "y"}}, "labels"),
        ({"labels": {"a": 1}}, "labels"),
        ({"labels": ["a"]}, "labels"),
        ({"snapshot_id": HOST.id, "snapshot": "host"}, "snapshot"),
        ({"persistent": False}, "persistent"),
        ({"preserve_memory_on_stop": True}, "preserve_memory_on_stop"),
        ({"restore_memory": True}, "restore_memory"),
        ({"fs_capacity_bytes": 2**60}, "fs_capacity_bytes"),
        ({"mount_config": {"mounts": [{"id": "x"}]}}, "mount_config"),
        ({"proxy_config": {"rules": [{"name": "x", "type": "aws"}]}}, "type"),
        ({"access_delegation": {"mode": "EXPLICIT", "permissions": ["a"]}}, "access_delegation"),
        ({"run_config": {"work_dir": "relative"}}, "work_dir"),
        ({"run_config": {"user": "no spaces"}}, "user"),
        ({"run_config": {"env_vars": {"A=B": "c"}}}, "env_vars"),
        ({"run_config": {"shell": "/bin/sh"}}, "shell"),
        ({"run_config": "root"}, "run_config"),
        ({"volumes": [{"volume": "v"}]}, "volumes"),
        ({"gpus": 1}, "gpus"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.AsyncClient, runtime: FakeRuntime, body: dict[str, Any], field: str
) -> None:
    answer = await http.post("/boxes", json=body)
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert detail["type"] == "value_error"
    assert detail["loc"][-1] == field
    assert runtime.calls == []


async def test_what_the_sdks_send_by_default_is_accepted(http: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    box = await create(
        http,
        snapshot_name="host",
        name="by-default",
        idle_ttl_seconds=600,
        delete_after_stop_seconds=0,
        persistent=True,
        preserve_memory_on_stop=False,
        restore_memory=False,
        cpu_millicores=500,
        mem_bytes=2**29,
        fs_capacity_bytes=2**30,
        labels={},
        env_vars={"A": "1"},
        run_config={"user": "root", "work_dir": "/home/user", "env_vars": {"B": "2"}},
        mount_config=None,
        proxy_config={"rules": []},
        access_delegation=None,
        volumes=[],
    )
    assert (box["idle_ttl_seconds"], box["vcpus"], box["cpu_millicores"]) == (600, 0.5, 500)
    spec = runtime.daemons[box["id"]].spec
    assert (spec.user, spec.work_dir, spec.cpu_millicores, spec.mem_bytes) == ("root", "/home/user", 500, 2**29)
    assert spec.env_vars == {"LANG": "C.UTF-8", "A": "1", "B": "2"}
    assert spec.hostname == "by-default"


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff"])
async def test_what_is_not_a_json_object_is_400(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/boxes", content=body)
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "InvalidRequest")


async def test_a_huge_body_is_413(http: httpx.AsyncClient) -> None:
    answer = await http.post("/boxes", content=b" " * (2**20 + 1))
    assert answer.status_code == 413


async def test_an_unknown_snapshot_is_400(http: httpx.AsyncClient) -> None:
    answer = await http.post("/boxes", json={"snapshot": "no-such"})
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "SnapshotNotFound")


async def test_a_taken_name_is_409(http: httpx.AsyncClient) -> None:
    await create(http, name="taken")
    answer = await http.post("/boxes", json={"name": "taken", "labels": {"other": "body"}})
    assert (answer.status_code, answer.json()["detail"]["error"]) == (409, "ResourceNameConflict")


async def test_a_create_that_is_sent_again_gets_the_same_sandbox(http: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.gate.clear()
    first = asyncio.create_task(http.post("/boxes", json={"name": "twice"}))
    second = asyncio.create_task(http.post("/boxes", json={"name": "twice"}))
    while (await http.get("/boxes/twice")).status_code != 200:
        await asyncio.sleep(0.001)
    assert (await http.post("/boxes", json={"name": "twice", "vcpus": 1})).status_code == 409
    runtime.gate.set()
    answers = [await first, await second]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert len(runtime.daemons) == 1


async def test_a_sandbox_that_is_slow_is_408_and_kept(http: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.gate.clear()
    answer = await http.post("/boxes", json={"name": "slow", "timeout": 0.01})
    assert (answer.status_code, answer.json()["detail"]["error"]) == (408, "Timeout")
    assert (await http.get("/boxes/slow/status")).json()["status"] == "provisioning"
    runtime.gate.set()
    while (await http.get("/boxes/slow/status")).json()["status"] != "ready":
        await asyncio.sleep(0.001)


async def test_a_nameless_sandbox_whose_creator_left_is_deleted(http: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.gate.clear()
    for body in ({}, {"name": "kept"}):
        started = len(runtime.calls) + 2
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/boxes", json=body, timeout=0.1)
        assert len(runtime.calls) == started
    runtime.gate.set()
    while len(boxes := (await http.get("/boxes")).json()["sandboxes"]) > 1 or boxes[0]["status"] != "ready":
        await asyncio.sleep(0.001)
    assert boxes[0]["name"] == "kept"


async def test_without_waiting_the_answer_comes_at_once(http: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    runtime.gate.clear()
    answer = await http.post("/boxes", json={"name": "later", "wait_for_ready": False})
    assert (answer.status_code, answer.json()["status"]) == (201, "provisioning")
    runtime.fail = RuntimeFailure("no such program", kind="CrashLoop")
    runtime.gate.set()
    while (status := (await http.get("/boxes/later/status")).json())["status"] != "failed":
        await asyncio.sleep(0.001)
    assert status["status_message"] == "no such program"


@pytest.mark.parametrize(("kind", "status"), [("SandboxConfig", 422), ("CrashLoop", 422), ("Unschedulable", 503)])
async def test_a_create_that_fails_leaves_nothing(
    http: httpx.AsyncClient, runtime: FakeRuntime, kind: str, status: int
) -> None:
    runtime.fail = RuntimeFailure("it cannot be", kind=kind)
    answer = await http.post("/boxes", json={"name": "broken"})
    detail = answer.json()["detail"]
    assert (answer.status_code, detail["error"], detail["message"]) == (status, kind, "it cannot be")
    assert (await http.get("/boxes/broken")).status_code == 404
    assert runtime.daemons == {}


async def test_stop_and_start(http: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    box = await create(http)
    for _ in range(2):  # Sent again, it is harmless.
        assert (await http.post(f"/boxes/{box['name']}/stop", json={})).status_code == 204
    stopped = (await http.get(f"/boxes/{box['name']}")).json()
    assert stopped["status"] == "stopped"
    assert stopped["stopped_at"] is not None
    assert stopped["dataplane_url"] == box["dataplane_url"]
    for _ in range(2):
        assert (await http.post(f"/boxes/{box['name']}/start", json={})).status_code == 202
    while (await http.get(f"/boxes/{box['name']}/status")).json()["status"] != "ready":
        await asyncio.sleep(0.001)
    assert [call for call, _ in runtime.calls] == ["create", "start", "stop", "start"]


async def test_a_daemon_that_ends_by_itself_fails_its_sandbox(http: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    box = await create(http)
    runtime.on_exit(box["id"], "killed by signal 9")
    status = (await http.get(f"/boxes/{box['name']}/status")).json()
    assert status == {"status": "failed", "status_message": "killed by signal 9"}
    assert (await http.post(f"/boxes/{box['name']}/stop")).status_code == 400


async def test_a_stop_or_delete_that_fails_says_so_and_can_be_tried_again(
    http: httpx.AsyncClient, runtime: FakeRuntime
) -> None:
    box = await create(http, name="stuck")
    runtime.stuck = RuntimeFailure("a process is in uninterruptible sleep", kind="Busy")
    for answer in (await http.post("/boxes/stuck/stop"), await http.delete("/boxes/stuck")):
        detail = answer.json()["detail"]
        assert (answer.status_code, detail["error"], detail["message"]) == (500, "Busy", str(runtime.stuck))
    assert (await http.get("/boxes/stuck/status")).json()["status"] == "deleting"
    assert (await http.post("/boxes/stuck/start")).status_code == 400
    assert (await http.get(f"/{box['id']}/download?path=x")).json()["detail"]["error"] == "NotReady"
    runtime.stuck = None
    assert (await http.delete("/boxes/stuck")).status_code == 204
    assert (await http.get("/boxes/stuck")).status_code == 404


async def test_pages_follow_one_another(http: httpx.AsyncClient) -> None:
    names = [(await create(http, name=f"page-{number}", labels={"n": str(number)}))["name"] for number in range(5)]
    seen: list[str] = []
    query = {"page_size": "2", "sort_by": "name", "sort_order": "asc"}
    while True:
        page = (await http.get("/boxes", params=query)).json()
        seen += [box["name"] for box in page["sandboxes"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == names
    newest_first = (await http.get("/boxes?limit=2&offset=1")).json()
    assert [box["name"] for box in newest_first["items"]] == ["page-3", "page-2"]
    assert newest_first["offset"] == 3
    for query_string, expected in [
        ("name_contains=ge-4", ["page-4"]),
        ("status=stopped", []),
        ("label=n=3", ["page-3"]),
        ("label=n&label=n%3D1", ["page-1"]),
        ("label=m", []),
    ]:
        boxes = (await http.get(f"/boxes?{query_string}")).json()["sandboxes"]
        assert [box["name"] for box in boxes] == expected


@pytest.mark.parametrize(
    "query",
    ["page_size=0", "limit=x", "offset=-1", "cursor=!", "cursor=WzEsMl0", "status=tired", "sort_by=x", "sort_order=x"],
)
async def test_a_bad_list_query_is_400(http: httpx.AsyncClient, query: str) -> None:
    await create(http)
    answer = await http.get(f"/boxes?{query}")
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "InvalidRequest")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/boxes", 405),
        ("GET", "/boxes/no-such", 404),
        ("GET", "/boxes/no-such/status", 404),
        ("POST", "/boxes/no-such/start", 404),
        ("POST", "/boxes/no-such/stop", 404),
        ("PATCH", "/boxes/no-such", 404),
        ("POST", "/boxes/no-such/service-url", 404),
        ("GET", "/usage", 501),
        ("GET", "/boxes/", 404),
    ],
)
async def test_errors_are_canonical(http: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["detail"].keys() == {"error", "message", "error_id"}
