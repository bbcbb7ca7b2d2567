"""The control plane: an ASGI application. Wire protocol, sections 1.5 to 1.10.

`scope["path"]` is the path as it was sent, so a route matches segments before they are decoded.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import views
from .creation import parse_create
from .errors import ApiError
from .paging import has_labels, ordering, paginate
from .queries import parameter, query, values
from .registry_routes import RegistryRoutes
from .sandbox import Sandbox, Status
from .snapshot_routes import SnapshotRoutes
from .updating import parse_update

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from .registries import RegistryBook
    from .sandboxes import SandboxRegistry
    from .services import ServiceLinks
    from .snapshots import SnapshotRegistry

__all__ = ["ControlPlane"]

HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")

NOT_OFFERED: Final = (
    ("/boxes/batch-delete", ["POST"]),
    ("/usage", ["GET"]),
    ("/usage/costs", ["GET"]),
)
"""What the protocol has and this server has not: 501, which no client takes for a sandbox that is not there."""

PRIVATE: Final = {"cache-control": "no-store"}
"""With answers that hold a credential."""

_SORT_KEYS: Final[Mapping[str, Callable[[Sandbox], str | int]]] = {
    "name": lambda sandbox: sandbox.name,
    "status": lambda sandbox: sandbox.status,
    "created_at": lambda sandbox: views.timestamp(sandbox.created_at),
    "stopped_at": lambda sandbox: views.timestamp(sandbox.stopped_at) if sandbox.stopped_at else "",
    "idle_ttl_seconds": lambda sandbox: sandbox.settings.idle_ttl_seconds,
    "delete_after_stop_seconds": lambda sandbox: sandbox.settings.delete_after_stop_seconds,
}


class ControlPlane:
    """The routes, over the registries. `public_url` is the origin that clients reach; None: what they say."""

    def __init__(
        self,
        registry: SandboxRegistry,
        snapshots: SnapshotRegistry,
        registries: RegistryBook,
        links: ServiceLinks,
        *,
        public_url: str | None = None,
    ) -> None:
        self._registry = registry
        self._links = links
        self._snapshots = snapshots
        self._public_url = public_url.rstrip("/") if public_url else None
        self.app: Starlette = Starlette(
            routes=[
                Route("/boxes", self.create_sandbox, methods=["POST"]),
                Route("/boxes", self.list_sandboxes, methods=["GET"]),
                *(Route(path, self.not_offered, methods=methods) for path, methods in NOT_OFFERED),
                Route("/boxes/{name}", self.get_sandbox, methods=["GET"]),
                Route("/boxes/{name}", self.delete_sandbox, methods=["DELETE"]),
                Route("/boxes/{name}", self.update_sandbox, methods=["PATCH"]),
                Route("/boxes/{name}/status", self.get_status, methods=["GET"]),
                Route("/boxes/{name}/start", self.start_sandbox, methods=["POST"]),
                Route("/boxes/{name}/stop", self.stop_sandbox, methods=["POST"]),
                Route("/boxes/{name}/service-url", self.make_service_url, methods=["POST"]),
                Route("/boxes/{name}/service-urls", self.list_service_urls, methods=["GET"]),
                Route("/boxes/{name}/service-urls", self.revoke_service_url, methods=["DELETE"]),
                Route("/boxes/{name}/download-url", self.make_download_url, methods=["POST"]),
                Route("/snapshots/builder", self.make_builder, methods=["POST"]),
                *SnapshotRoutes(snapshots, registry).routes,
                *RegistryRoutes(registries).routes,
            ],
            exception_handlers={HTTPException: _raise_api_error},
        )
        self.app.router.redirect_slashes = False

    async def create_sandbox(self, request: Request) -> Response:
        wanted, fingerprint = parse_create(await request.body(), key=_presented_key(request))
        origin = self._origin(request)
        snapshot = await self._snapshots.index.find(wanted.snapshot_reference)
        if snapshot is None:
            raise ApiError(400, "SnapshotNotFound", f"there is no snapshot {wanted.snapshot_reference!r}")
        sandbox = self._registry.create(wanted.resolve(snapshot, fingerprint))
        await self._registry.committed()
        if wanted.waits:
            sandbox = await self._wait_ready(sandbox, wanted.patience, named=wanted.name is not None)
        return JSONResponse(views.sandbox(sandbox, origin=origin), status_code=201)

    async def _wait_ready(self, sandbox: Sandbox, patience: float, *, named: bool) -> Sandbox:
        """The ready sandbox. One that failed is destroyed: this answer is all that its creator learns of it."""
        try:
            async with asyncio.timeout(patience):
                sandbox = await self._registry.wait_started(sandbox.id)
        except asyncio.CancelledError:
            if not named:
                self._registry.abandon(sandbox.id)  # Its creator has left without learning what it is called.
            raise
        except TimeoutError:
            message = f"sandbox {sandbox.name!r} is not ready after {patience:g} s; it is kept and may become ready"
            raise ApiError(408, "Timeout", message) from None
        if sandbox.status is Status.FAILED and (failure := sandbox.failure) is not None:
            await self._registry.delete(sandbox.id)
            raise ApiError(503 if failure.kind == "Unschedulable" else 422, failure.kind, failure.message)
        return sandbox

    async def list_sandboxes(self, request: Request) -> Response:
        asked = query(request)
        key, descending = ordering(asked, _SORT_KEYS, by=asked.get("sort_by", "created_at"))
        if "status" in asked and asked["status"] not in list(Status):
            raise ApiError(400, "InvalidRequest", f"status must be one of {', '.join(Status)}")
        labels = values(request, "label")
        chosen = [sandbox for sandbox in self._registry.list() if _matches(sandbox, asked, labels)]
        page = paginate(chosen, asked, key=key, descending=descending)
        origin = self._origin(request)
        objects = [views.sandbox(sandbox, origin=origin) for sandbox in page.items]
        return JSONResponse(
            {"sandboxes": objects, "items": objects, "next_cursor": page.next_cursor, "offset": page.next_offset}
        )

    async def get_sandbox(self, request: Request) -> Response:
        sandbox = self._registry.get(parameter(request, "name"))
        return JSONResponse(views.sandbox(sandbox, origin=self._origin(request)))

    async def get_status(self, request: Request) -> Response:
        return JSONResponse(views.sandbox_status(self._registry.get(parameter(request, "name"))))

    async def update_sandbox(self, request: Request) -> Response:
        change = parse_update(await request.body())
        sandbox = await self._registry.update(parameter(request, "name"), change)
        await self._registry.committed()
        return JSONResponse(views.sandbox(sandbox, origin=self._origin(request)))

    async def delete_sandbox(self, request: Request) -> Response:
        await self._registry.delete(parameter(request, "name"))
        await self._registry.committed()
        return Response(status_code=204)

    async def start_sandbox(self, request: Request) -> Response:
        sandbox = self._registry.start(parameter(request, "name"))
        await self._registry.committed()
        return JSONResponse(views.sandbox(sandbox, origin=self._origin(request)), status_code=202)

    async def stop_sandbox(self, request: Request) -> Response:
        await self._registry.stop(parameter(request, "name"))
        await self._registry.committed()
        return Response(status_code=204)

    async def make_service_url(self, request: Request) -> Response:
        body = await request.body()
        made = self._links.make_service_url(parameter(request, "name"), body, origin=self._origin(request))
        return JSONResponse(made, headers=PRIVATE)

    async def list_service_urls(self, request: Request) -> Response:
        urls = self._links.list_service_urls(parameter(request, "name"))
        return JSONResponse({"service_urls": urls, "items": urls})

    async def revoke_service_url(self, request: Request) -> Response:
        self._links.revoke(parameter(request, "name"), query(request).get("port"))
        return Response(status_code=204)

    async def make_download_url(self, request: Request) -> Response:
        body = await request.body()
        made = self._links.make_download_url(parameter(request, "name"), body, origin=self._origin(request))
        return JSONResponse(made, headers=PRIVATE)

    async def make_builder(self, request: Request) -> Response:
        origin = self._origin(request)
        builder = await self._snapshots.builds.make_builder(await request.body())
        return JSONResponse(views.sandbox(builder, origin=origin), status_code=201)

    async def not_offered(self, request: Request) -> Response:
        raise ApiError(501, "NotImplemented", f"this server does not offer {request.method} {request.scope['path']}")

    def _origin(self, request: Request) -> str:
        """Scheme, host and port by which the client reaches us, without a trailing slash."""
        if self._public_url is not None:
            return self._public_url
        host = request.headers.get("host", "")
        if not HOST.fullmatch(host):
            raise ApiError(400, "InvalidRequest", "the Host header is not a host and port")
        return f"{request.scope['scheme']}://{host}"


async def _raise_api_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses, in our words."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.scope['path']}"
    if error.status_code == 405:
        raise ApiError(405, "MethodNotAllowed", f"there is no {where}")
    raise ApiError(404, "NotFound", f"there is no {where}; sandboxes are below /api/v2/sandboxes")


def _matches(sandbox: Sandbox, query: dict[str, str], labels: list[str]) -> bool:
    status = query.get("status")
    if (status is not None and sandbox.status != status) or query.get("name_contains", "") not in sandbox.name:
        return False
    return has_labels(sandbox.settings.labels, labels)


def _presented_key(request: Request) -> bytes:
    return (request.headers.get("x-api-key") or request.headers.get("authorization") or "").encode("latin-1")
