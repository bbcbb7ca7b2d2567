"""Where the server remembers its sandboxes: in memory, the one place of truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .sandbox import Sandbox

__all__ = ["MemoryStore"]


class MemoryStore:
    """Sandboxes by id and by name. Every call is a transaction: it happens whole or raises."""

    def __init__(self) -> None:
        self._by_id: dict[str, Sandbox] = {}
        self._ids: dict[str, str] = {}

    def insert(self, sandbox: Sandbox) -> None:
        """Raises ApiError 409 when the name is taken."""
        if sandbox.name in self._ids:
            raise ApiError(409, "ResourceNameConflict", f"there is a sandbox named {sandbox.name!r} already")
        self._by_id[sandbox.id] = sandbox
        self._ids[sandbox.name] = sandbox.id

    def replace(self, sandbox: Sandbox) -> None:
        """Store a new version of a sandbox that is there."""
        assert sandbox.id in self._by_id
        self._by_id[sandbox.id] = sandbox

    def remove(self, id: str) -> None:
        sandbox = self._by_id.pop(id)
        del self._ids[sandbox.name]

    def find(self, reference: str) -> Sandbox | None:
        """By name or id. A name never looks like an id."""
        return self._by_id.get(self._ids.get(reference, reference.lower()))

    def __iter__(self) -> Iterator[Sandbox]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)
