"""The client's calls about snapshots and registries, against a service that answers to order."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from sandbox_aio import (
    AsyncSandboxClient,
    Registry,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    RunConfig,
    SnapshotTag,
)
from tests.client.fake_control_plane import BASE
from tests.client.fake_service import Handler, Reply, Request, error, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from pathlib import Path

    from tests.client.fake_service import FakeService

pytestmark = pytest.mark.anyio


def made(status: str = "building", message: str | None = None) -> dict[str, Any]:
    return {"id": "i", "name": "n", "status": status, "status_message": message, "fs_capacity_bytes": 5}


class Making:
    """Answers a POST with a snapshot that is building, and each look at it with the next of `looks`, the last again."""

    def __init__(self, *looks: dict[str, Any]) -> None:
        self.looks = list(looks)

    async def __call__(self, request: Request) -> Reply:
        if request.method == "POST":
            return Reply(status=201, json=made())
        return Reply(json=self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])


@asynccontextmanager
async def service(handler: Handler) -> AsyncGenerator[tuple[AsyncSandboxClient, FakeService]]:
    async with (
        fake_service(handler) as server,
        AsyncSandboxClient(api_endpoint=f"{server.url}{BASE}", api_key="k", max_retries=0) as client,
    ):
        yield client, server


async def test_a_snapshot_is_awaited_until_it_is_ready() -> None:
    told: list[str] = []
    looks = [made(message=message) for message in (None, "1 of 2", "1 of 2", "2 of 2")]
    async with service(Making(*looks, made("ready", "a note"))) as (client, server):
        snapshot = await client.create_snapshot(
            "n", "debian:12", 5, tag="t", registry_id="r", run_config=RunConfig("me"), on_progress=told.append
        )
    assert (snapshot.id, snapshot.status) == ("i", "ready")
    assert told == ["1 of 2", "2 of 2"]
    assert server.requests[0].json == {
        "name": "n",
        "docker_image": "debian:12",
        "fs_capacity_bytes": 5,
        "tag": "t",
        "registry_id": "r",
        "run_config": {"user": "me"},
    }
    assert {request.target for request in server.requests[1:]} == {f"{BASE}/snapshots/i"}


async def test_progress_may_be_told_to_a_coroutine_function() -> None:
    told: list[str] = []

    async def tell(message: str) -> None:
        told.append(message)

    async with service(Making(made(message="half"), made("ready"))) as (client, _):
        await client.capture_snapshot("box", "n", on_progress=tell)
    assert told == ["half"]


async def test_an_error_of_the_callback_is_the_callers() -> None:
    def fail(message: str) -> None:
        raise LookupError(message)

    async with service(Making(made(message="half"))) as (client, _):
        with pytest.raises(LookupError, match="half"):
            await client.create_snapshot("n", "debian", 5, on_progress=fail)


async def test_one_that_is_ready_at_once_is_not_looked_at() -> None:
    async def handler(request: Request) -> Reply:
        return Reply(status=201, json=made("ready"))

    async with service(handler) as (client, server):
        assert (await client.create_snapshot("n", "debian", 5)).status == "ready"
        assert (await client.create_snapshot("n", "debian", 5, wait=False)).status == "ready"
    assert [request.method for request in server.requests] == ["POST", "POST"]


async def test_without_waiting_it_is_told_as_it_is() -> None:
    async with service(Making(made("ready"))) as (client, server):
        assert (await client.create_snapshot("n", "debian", 5, wait=False)).status == "building"
        assert len(server.requests) == 1
        assert (await client.wait_for_snapshot("i")).status == "ready"


async def test_a_failure_is_told_with_the_services_words() -> None:
    async with service(Making(made("failed", "there is no such image"))) as (client, _):
        with pytest.raises(ResourceCreationError, match="there is no such image") as caught:
            await client.create_snapshot("n", "debian", 5)
        assert caught.value.resource_type == "snapshot"
        with pytest.raises(ResourceCreationError):
            await client.capture_snapshot("box", "n")
        with pytest.raises(ResourceCreationError):
            await client.import_snapshot("n", b"archive")


async def test_what_takes_too_long_is_told_with_its_last_status() -> None:
    async with service(Making(made())) as (client, _):
        with pytest.raises(ResourceTimeoutError) as caught:
            await client.create_snapshot("n", "debian", 5, timeout=0.1)
    assert (caught.value.resource_type, caught.value.last_status) == ("snapshot", "building")


async def test_a_sandbox_that_is_not_there_is_not_captured() -> None:
    async def handler(request: Request) -> Reply:
        return error(404, "SandboxNotFound")

    async with service(handler) as (client, server):
        with pytest.raises(ResourceNotFoundError) as caught:
            await client.capture_snapshot("box", "n", tag="t", docker_image="app", fs_capacity_bytes=7)
    assert caught.value.resource_type == "sandbox"
    assert server.requests[0].target == f"{BASE}/boxes/box/snapshot"
    assert server.requests[0].json == {"name": "n", "tag": "t", "docker_image": "app", "fs_capacity_bytes": 7}


async def pieces_async() -> AsyncIterator[bytes]:
    for number in range(3):
        yield bytes([65 + number])


def pieces() -> Iterator[bytes]:
    yield from (b"A", b"B", b"C")


@pytest.mark.parametrize("kind", ["path", "bytes", "async", "sync", "file"])
async def test_an_archive_is_sent_from_wherever_it_is(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "archive.tar"
    file.write_bytes(b"ABC")
    async with service(Making(made("ready"))) as (client, server):
        with file.open("rb") as opened:
            source: Any = {
                "path": file,
                "bytes": b"ABC",
                "async": pieces_async(),
                "sync": pieces(),
                "file": opened,
            }[kind]
            assert (await client.import_snapshot("a/n", source, tag="t", fs_capacity_bytes=9)).status == "ready"
    request = server.requests[0]
    assert request.target == f"{BASE}/snapshots/import?name=a%2Fn&tag=t&fs_capacity_bytes=9"
    assert (request.body, request.headers["content-type"]) == (b"ABC", "application/x-tar")
    assert ("content-length" in request.headers) == (kind in ("path", "bytes"))


async def test_an_archive_that_is_not_there_is_not_sent(tmp_path: Path) -> None:
    async with service(Making(made())) as (client, server):
        with pytest.raises(OSError, match="no-such"):
            await client.import_snapshot("n", tmp_path / "no-such")
        assert server.requests == []


async def test_a_cancelled_import_lets_go_of_its_source() -> None:
    closed = anyio.Event()

    async def endless(scope: anyio.CancelScope) -> AsyncGenerator[bytes]:
        try:
            for _ in range(100):
                yield b"piece" * 1000
            scope.cancel()
            while True:
                yield b"more"
        finally:
            closed.set()

    async with service(Making(made())) as (client, server):
        with anyio.CancelScope() as scope:
            await client.import_snapshot("n", endless(scope))
        assert scope.cancelled_caught
        assert closed.is_set()
        assert server.requests == []
        assert (await client.get_snapshot("i")).status == "building"


async def test_an_error_of_the_source_is_the_callers() -> None:
    def broken() -> Iterator[bytes]:
        yield b"piece"
        raise LookupError("no more")

    async with service(Making(made())) as (client, server):
        with pytest.raises(LookupError, match="no more"):
            await client.import_snapshot("n", broken())
        assert server.requests == []


async def test_a_service_without_imports_says_so() -> None:
    async def handler(request: Request) -> Reply:
        return error(404, "NotFound", "no such path")

    async with service(handler) as (client, _):
        for refused in (
            client.import_snapshot("n", b"archive"),
            client.tag_snapshot("n", "t"),
            client.push_snapshot("n", "h/i"),
        ):
            with pytest.raises(ResourceNotFoundError, match="no such path"):
                await refused


async def test_tags_pushes_and_deletions() -> None:
    answers = {
        "/tags": Reply(status=201, json=made("ready")),
        "/push": Reply(json={"image": "h/i", "digest": "sha256:1"}),
        "/snapshots-by-name/n": Reply(json={"name": "n", "tags": [{"tag": "t", "snapshot_id": "i"}]}),
        "/snapshots/n:t": Reply(status=204),
    }

    async def handler(request: Request) -> Reply:
        return next((reply for end, reply in answers.items() if request.path.endswith(end)), error(404, "NotFound"))

    async with service(handler) as (client, server):
        assert (await client.tag_snapshot("n:t", "u", name="m")).id == "i"
        assert await client.push_snapshot("n:t", "h/i", registry_id="r", timeout=5) == "sha256:1"
        assert await client.list_snapshot_tags("n") == [SnapshotTag("t", "i")]
        await client.delete_snapshot("n:t")
        assert [request.json for request in server.requests[:2]] == [
            {"tag": "u", "name": "m"},
            {"image": "h/i", "registry_id": "r"},
        ]
        for missing in (client.delete_snapshot("x"), client.list_snapshot_tags("x"), client.get_snapshot("x")):
            with pytest.raises(ResourceNotFoundError) as caught:
                await missing
            assert caught.value.resource_type == "snapshot"


class Registries:
    """The registries of a service, by name."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}

    async def __call__(self, request: Request) -> Reply:
        name = request.path.removeprefix(f"{BASE}/registries").removeprefix("/")
        if not name:
            return (
                self._create(request.json) if request.method == "POST" else Reply(json={"items": self._found(request)})
            )
        if name not in self.records:
            return error(404, "RegistryNotFound")
        if request.method == "DELETE":
            del self.records[name]
            return Reply(status=204)
        if request.method == "PATCH":
            if request.json.get("name") in self.records:
                return error(409, "ResourceNameConflict", "taken")
            self.records[name] |= request.json
        return Reply(json=self.records[name])

    def _create(self, wanted: dict[str, Any]) -> Reply:
        if wanted["name"] in self.records:
            return error(409, "ResourceNameConflict", "taken")
        self.records[wanted["name"]] = {"id": f"id-{wanted['name']}", **wanted}
        return Reply(status=201, json=self.records[wanted["name"]])

    def _found(self, request: Request) -> list[dict[str, Any]]:
        return [one for name, one in self.records.items() if request.query.get("name_contains", "") in name]


async def test_the_life_of_a_registry() -> None:
    plane = Registries()
    async with service(plane) as (client, _):
        registry = await client.registries.create(name="a", url="r.example", username="me", password="p")
        assert registry == Registry("id-a", "a", "r.example")
        assert await client.registries.retrieve("a") == registry
        await client.registries.create(name="b", url="r.example", auth_type="AWS_ROLE", aws_role_arn="arn")
        assert [one.name for one in await client.registries.list()] == ["a", "b"]
        assert [one.name for one in (await client.registries.list(name_contains="b", page_size=1)).registries] == ["b"]
        with pytest.raises(ResourceAlreadyExistsError):
            await client.registries.create(name="a", url="r.example")
        with pytest.raises(ResourceNameConflictError):
            await client.registries.update("a", body_name="b")
        assert (await client.registries.update("a", url="other.example", password="q")).url == "other.example"
        assert plane.records["a"]["password"] == "q"
        await client.registries.delete("a")
        for missing in (
            client.registries.retrieve("a"),
            client.registries.update("a", url="u"),
            client.registries.delete("a"),
        ):
            with pytest.raises(ResourceNotFoundError) as caught:
                await missing
            assert caught.value.resource_type == "registry"
