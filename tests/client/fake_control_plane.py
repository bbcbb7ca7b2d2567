"""A control plane in memory, whose creation is slow where a test wants it to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from tests.client.fake_service import Reply, Request, error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BASE = "/api/v2/sandboxes"


async def at_once() -> None:
    """No pause at all."""


class FakeControlPlane:
    """The handler of a `fake_service`."""

    def __init__(self) -> None:
        self.boxes: dict[str, dict[str, Any]] = {}
        self.created: list[str] = []
        """The names of all sandboxes that ever were."""
        self.deleted: list[str] = []
        """The names in deletions that found a sandbox."""
        self.before_record: Callable[[], Awaitable[None]] = at_once
        """Awaited between a creation's arrival and its sandbox's existence."""
        self.before_ready: Callable[[], Awaitable[None]] = at_once
        """Awaited between the sandbox's existence and the answer."""
        self.answers: list[Reply] = []
        """Given instead of the answer to a creation that was carried out, one after the other."""
        self.arrived = anyio.Event()
        """Set when a creation arrived."""
        self.released = anyio.Event()
        """For tests to wait for in the two above."""

    async def __call__(self, request: Request) -> Reply:
        """Answer a request."""
        _, _, path = request.path.partition(f"{BASE}/")
        match (request.method, path.split("/")):
            case ("POST", ["boxes"]):
                return await self._create(request)
            case ("GET", ["boxes"]):
                return Reply(json={"sandboxes": list(self.boxes.values())})
            case (method, ["boxes", name, *rest]) if name in self.boxes:
                return self._about(method, name, rest, request)
        return error(404, "NotFound", f"no {path}")

    def _about(self, method: str, name: str, rest: list[str], request: Request) -> Reply:
        box = self.boxes[name]
        match (method, rest):
            case ("GET", []):
                return Reply(json=box)
            case ("GET", ["status"]):
                return Reply(json={"status": box["status"]})
            case ("DELETE", []):
                self.deleted.append(name)
                del self.boxes[name]
                return Reply(status=204)
            case ("PATCH", []):
                box |= request.json
                self.boxes[box["name"]] = self.boxes.pop(name)
                return Reply(json=box)
            case ("POST", ["start"]):
                box["status"] = "ready"
                return Reply(status=202, json=box)
            case ("POST", ["stop"]):
                box["status"] = "stopped"
                return Reply(status=204)
        return error(405)

    async def _create(self, request: Request) -> Reply:
        self.arrived.set()
        name = request.json["name"]
        if name in self.boxes:
            return error(409, "Conflict", f"{name} is taken")
        await self.before_record()
        self.created.append(name)
        self.boxes[name] = {"name": name, "id": f"id-{name}", "status": "provisioning", "dataplane_url": "http://d"}
        if request.json["wait_for_ready"]:
            await self.before_ready()
            if name in self.boxes:
                self.boxes[name]["status"] = "ready"
        if self.answers:
            return self.answers.pop(0)
        return Reply(status=201, json=self.boxes.get(name, {"name": name}))
