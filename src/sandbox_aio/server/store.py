"""Where the server remembers its sandboxes: in memory, and behind it in the database."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from .egress.config import parse_proxy_config
from .errors import ApiError
from .sandbox import Failure, RunConfig, Sandbox, Settings, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .database import Database

__all__ = ["SandboxStore"]


class SandboxStore:
    """Sandboxes by id and by name. Every call is a transaction: it happens whole or raises."""

    def __init__(self) -> None:
        self._by_id: dict[str, Sandbox] = {}
        self._ids: dict[str, str] = {}
        self._database: Database | None = None

    async def open(self, database: Database) -> None:
        """Learn what an earlier server knew, and write down every change from now on. Raises StoreError."""
        for (text,) in await database.read("SELECT record FROM sandboxes"):
            sandbox = _from_json(text)
            self._by_id[sandbox.id] = sandbox
            self._ids[sandbox.name] = sandbox.id
        self._database = database

    async def committed(self) -> None:
        """Wait until every change is in the database. Raises StoreError."""
        if self._database is not None:
            await self._database.committed()

    def insert(self, sandbox: Sandbox) -> None:
        """Raises ApiError 409 when the name is taken."""
        if sandbox.name in self._ids:
            raise ApiError(409, "ResourceNameConflict", f"there is a sandbox named {sandbox.name!r} already")
        self._ids[sandbox.name] = sandbox.id
        self._put(sandbox)

    def replace(self, sandbox: Sandbox) -> None:
        """Store a new version of a sandbox that is there."""
        assert sandbox.id in self._by_id
        self._put(sandbox)

    def _put(self, sandbox: Sandbox) -> None:
        self._by_id[sandbox.id] = sandbox
        if self._database is not None:
            row = (sandbox.id, _to_json(sandbox))
            self._database.write(("INSERT OR REPLACE INTO sandboxes (id, record) VALUES (?, ?)", row))

    def remove(self, id: str) -> None:
        sandbox = self._by_id.pop(id)
        del self._ids[sandbox.name]
        if self._database is not None:
            self._database.write(("DELETE FROM sandboxes WHERE id = ?", (id,)))

    def find(self, reference: str) -> Sandbox | None:
        """By name or id. A name never looks like an id."""
        return self._by_id.get(self._ids.get(reference, reference.lower()))

    def __iter__(self) -> Iterator[Sandbox]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)


def _to_json(sandbox: Sandbox) -> str:
    """The record, secrets and all: the file is its owner's alone."""
    data = attrs.asdict(sandbox)
    data["settings"]["proxy_config"] = sandbox.settings.proxy_config.document()
    for name in ("created_at", "updated_at", "stopped_at"):
        data[name] = data[name] and data[name].isoformat()
    data["fingerprint"] = sandbox.fingerprint and base64.b64encode(sandbox.fingerprint).decode()
    return json.dumps(data)


def _from_json(text: str) -> Sandbox:
    data: dict[str, Any] = json.loads(text)
    settings = data["settings"]
    settings["proxy_config"] = parse_proxy_config(settings["proxy_config"])
    settings["run_config"] = RunConfig(**settings["run_config"])
    for name in ("created_at", "updated_at", "stopped_at"):
        data[name] = data[name] and datetime.fromisoformat(data[name])
    return Sandbox(
        **{
            **data,
            "settings": Settings(**settings),
            "status": Status(data["status"]),
            "failure": data["failure"] and Failure(**data["failure"]),
            "fingerprint": data["fingerprint"] and base64.b64decode(data["fingerprint"]),
            "image": RunConfig(**data["image"]),
            "layers": tuple(data["layers"]),
        }
    )
