"""The routes of registries. Wire protocol, section 1.11."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import views
from .paging import paginate
from .queries import parameter, query
from .registry_requests import parse_create_registry, parse_update_registry

if TYPE_CHECKING:
    from starlette.requests import Request

    from .registries import RegistryBook

__all__ = ["RegistryRoutes"]


class RegistryRoutes:
    """What is asked of registries, over the book of them."""

    def __init__(self, registries: RegistryBook) -> None:
        self._registries = registries
        self.routes: list[Route] = [
            Route("/registries", self.create, methods=["POST"]),
            Route("/registries", self.list, methods=["GET"]),
            Route("/registries/{name}", self.get, methods=["GET"]),
            Route("/registries/{name}", self.update, methods=["PATCH"]),
            Route("/registries/{name}", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        registry = await self._registries.create(parse_create_registry(await request.body()))
        return JSONResponse(views.registry(registry), status_code=201)

    async def list(self, request: Request) -> Response:
        asked = query(request)
        wanted = asked.get("name_contains", "")
        chosen = [registry for registry in self._registries.list() if wanted in registry.name]
        page = paginate(chosen, asked, key=lambda registry: (registry.name, registry.id), descending=False)
        objects = [views.registry(registry) for registry in page.items]
        return JSONResponse(
            {"registries": objects, "items": objects, "next_cursor": page.next_cursor, "offset": page.next_offset}
        )

    async def get(self, request: Request) -> Response:
        return JSONResponse(views.registry(self._registries.get(parameter(request, "name"))))

    async def update(self, request: Request) -> Response:
        change = parse_update_registry(await request.body())
        return JSONResponse(views.registry(await self._registries.update(parameter(request, "name"), change)))

    async def delete(self, request: Request) -> Response:
        await self._registries.delete(parameter(request, "name"))
        return Response(status_code=204)
