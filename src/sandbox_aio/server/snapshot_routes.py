"""The routes of snapshots. Wire protocol, section 1.10; tags, imports and pushes beyond it are this server's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import views
from .errors import ApiError
from .paging import has_labels, ordering, paginate
from .queries import parameter, query, values
from .snapshot import SnapshotStatus
from .snapshot_requests import parse_capture, parse_create_snapshot, parse_import, parse_push, parse_tag

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from .paging import SortKey
    from .sandboxes import SandboxRegistry
    from .snapshot import Snapshot
    from .snapshots import SnapshotRegistry

__all__ = ["SnapshotRoutes"]

_SORT_KEYS: dict[str, Callable[[Snapshot], str | int]] = {
    "name": lambda snapshot: snapshot.name,
    "status": lambda snapshot: snapshot.status,
    "created_at": lambda snapshot: views.timestamp(snapshot.created_at),
    "updated_at": lambda snapshot: views.timestamp(snapshot.updated_at),
}


class SnapshotRoutes:
    """What is asked of snapshots, over their registry."""

    def __init__(self, snapshots: SnapshotRegistry, sandboxes: SandboxRegistry) -> None:
        self._snapshots = snapshots
        self._index = snapshots.index
        self._sandboxes = sandboxes
        self.routes: list[Route] = [
            Route("/snapshots", self.create, methods=["POST"]),
            Route("/snapshots", self.list, methods=["GET"]),
            Route("/snapshots/import", self.receive, methods=["POST"]),
            Route("/snapshots/{reference}/push", self.push, methods=["POST"]),
            Route("/snapshots/{reference}", self.get, methods=["GET"]),
            Route("/snapshots/{reference}", self.delete, methods=["DELETE"]),
            Route("/snapshots/{reference}/tags", self.tag, methods=["POST"]),
            Route("/snapshots-by-name/{name}", self.tags, methods=["GET"]),
            Route("/boxes/{name}/snapshot", self.capture, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        snapshot = await self._snapshots.create(parse_create_snapshot(await request.body()))
        return await self._answer(await self._snapshots.settled(snapshot), 201)

    async def capture(self, request: Request) -> Response:
        wanted = parse_capture(await request.body())
        sandbox = await self._sandboxes.wait_started(parameter(request, "name"))
        snapshot = await self._snapshots.capture(sandbox, wanted)
        return await self._answer(await self._snapshots.settled(snapshot), 201)

    async def receive(self, request: Request) -> Response:
        snapshot = await self._snapshots.receive(parse_import(query(request)), request.stream())
        return await self._answer(snapshot, 201)

    async def push(self, request: Request) -> Response:
        wanted = parse_push(await request.body())
        digest = await self._snapshots.push(parameter(request, "reference"), wanted)
        return JSONResponse({"image": str(wanted.reference), "digest": digest})

    async def list(self, request: Request) -> Response:
        asked = query(request)
        by = asked.get("sort_by")
        key, descending = (_by_name, False) if by is None else ordering(asked, _SORT_KEYS, by=by)
        if "status" in asked and asked["status"] not in tuple(SnapshotStatus):
            raise ApiError(400, "InvalidRequest", f"status must be one of {', '.join(SnapshotStatus)}")
        if asked.get("created_by", "me") != "me":
            raise ApiError(400, "InvalidRequest", "created_by must be me")
        labels = values(request, "label")
        await self._index.committed()  # What is shown as ready stays so.
        chosen = [one for one in await self._index.all() if _matches(one, asked, labels)]
        page = paginate(chosen, asked, key=key, descending=descending)
        objects = [views.snapshot(one, self._index.tags(one)) for one in page.items]
        return JSONResponse(
            {"snapshots": objects, "items": objects, "next_cursor": page.next_cursor, "offset": page.next_offset}
        )

    async def get(self, request: Request) -> Response:
        snapshot = await self._index.get(parameter(request, "reference"))
        await self._index.committed()
        return JSONResponse(views.snapshot(snapshot, self._index.tags(snapshot)))

    async def delete(self, request: Request) -> Response:
        await self._snapshots.delete(parameter(request, "reference"))
        await self._index.committed()
        return Response(status_code=204)

    async def tag(self, request: Request) -> Response:
        wanted = parse_tag(await request.body())
        return await self._answer(
            await self._snapshots.tag(parameter(request, "reference"), wanted.tag, wanted.name), 201
        )

    async def tags(self, request: Request) -> Response:
        name = parameter(request, "name")
        if ":" in name:
            raise ApiError(400, "InvalidRequest", f"{name!r} has a tag; give the name alone")
        found = [{"tag": tag, "snapshot_id": id} for tag, id in await self._index.tags_of(name)]
        return JSONResponse({"name": name, "tags": found})

    async def _answer(self, snapshot: Snapshot, status: int) -> Response:
        await self._index.committed()
        return JSONResponse(views.snapshot(snapshot, self._index.tags(snapshot)), status_code=status)


def _matches(snapshot: Snapshot, asked: dict[str, str], labels: list[str]) -> bool:
    if asked.get("name_contains", "") not in snapshot.name:
        return False
    if "status" in asked and snapshot.status != asked["status"]:
        return False
    return has_labels(snapshot.labels, labels)


def _by_name(snapshot: Snapshot) -> SortKey:
    return snapshot.name, snapshot.id
