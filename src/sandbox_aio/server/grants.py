"""Who was given what of which sandbox, so that it can be taken back. Wire protocol, section 6.1.

One small file per sandbox. A token says which grant it is of; without that grant it is worth nothing.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

__all__ = ["GrantBook", "PortGrant", "write_private"]

MAX_PORT_GRANTS: Final = 1000
"""Ports of one sandbox with a grant at once."""


@attrs.frozen(kw_only=True)
class PortGrant:
    """That there are tokens for a port. All of one grant end together."""

    id: str
    created_at: datetime
    expires_at: datetime
    """When the last of its tokens expires."""
    embed_origins: tuple[str, ...] = ()
    """Those of the last token."""


@attrs.define(kw_only=True)
class _Entry:
    ports: dict[int, PortGrant] = attrs.field(factory=dict)
    download_key: bytes | None = None


class GrantBook:
    """The grants of all sandboxes, in memory and in a directory."""

    def __init__(self, directory: Path) -> None:
        """Read what is there. Raises OSError, or ValueError for a file that is not ours."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._entries = {path.stem: _read(path) for path in sorted(directory.glob("*.json"))}

    def grant(
        self, sandbox_id: str, port: int, *, now: datetime, expires_at: datetime, embed_origins: tuple[str, ...]
    ) -> PortGrant:
        """The grant of a port, which lasts until `expires_at` at least. Raises ValueError when there are too many."""
        entry = self._entries.get(sandbox_id, _Entry())
        ports = {number: known for number, known in entry.ports.items() if known.expires_at > now}
        old = ports.get(port)
        if old is None:
            if len(ports) >= MAX_PORT_GRANTS:
                raise ValueError(f"{MAX_PORT_GRANTS} ports of this sandbox have tokens; revoke some")
            old = PortGrant(id=secrets.token_urlsafe(12), created_at=now, expires_at=expires_at)
        ports[port] = grant = attrs.evolve(old, expires_at=max(old.expires_at, expires_at), embed_origins=embed_origins)
        if grant != entry.ports.get(port):
            self._store(sandbox_id, attrs.evolve(entry, ports=ports))
        return grant

    def find(self, sandbox_id: str, port: int) -> PortGrant | None:
        entry = self._entries.get(sandbox_id)
        return entry.ports.get(port) if entry is not None else None

    def ports(self, sandbox_id: str, *, now: datetime) -> Iterator[tuple[int, PortGrant]]:
        """The grants that have not expired, by their ports."""
        entry = self._entries.get(sandbox_id, _Entry())
        return iter(sorted((port, grant) for port, grant in entry.ports.items() if grant.expires_at > now))

    def revoke(self, sandbox_id: str, port: int) -> None:
        entry = self._entries.get(sandbox_id)
        if entry is not None and port in entry.ports:
            ports = {number: grant for number, grant in entry.ports.items() if number != port}
            self._store(sandbox_id, attrs.evolve(entry, ports=ports))

    def download_key(self, sandbox_id: str) -> bytes:
        """The secret that a sandbox's download links are signed with; made when first asked for."""
        entry = self._entries.get(sandbox_id, _Entry())
        if entry.download_key is None:
            entry = attrs.evolve(entry, download_key=secrets.token_bytes(32))
            self._store(sandbox_id, entry)
        assert entry.download_key is not None
        return entry.download_key

    def find_download_key(self, sandbox_id: str) -> bytes | None:
        entry = self._entries.get(sandbox_id)
        return entry.download_key if entry is not None else None

    def forget(self, sandbox_id: str) -> None:
        """Take back everything of a sandbox that is gone."""
        if self._entries.pop(sandbox_id, None) is not None:
            self._path(sandbox_id).unlink(missing_ok=True)

    def retain(self, sandbox_ids: Collection[str]) -> None:
        """Forget every other sandbox."""
        for sandbox_id in self._entries.keys() - set(sandbox_ids):
            self.forget(sandbox_id)

    def _store(self, sandbox_id: str, entry: _Entry) -> None:
        """First the file, then the memory: what is given out is never forgotten by a crash."""
        document: dict[str, Any] = {"ports": {str(port): _written(grant) for port, grant in entry.ports.items()}}
        if entry.download_key is not None:
            document["download_key"] = entry.download_key.hex()
        write_private(self._path(sandbox_id), json.dumps(document).encode())
        self._entries[sandbox_id] = entry

    def _path(self, sandbox_id: str) -> Path:
        assert re.fullmatch(r"[A-Za-z0-9-]+", sandbox_id), sandbox_id
        return self._directory / f"{sandbox_id}.json"


def write_private(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all; only its owner can read it. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _written(grant: PortGrant) -> dict[str, Any]:
    return {
        "id": grant.id,
        "created_at": grant.created_at.isoformat(),
        "expires_at": grant.expires_at.isoformat(),
        "embed_origins": grant.embed_origins,
    }


def _read(path: Path) -> _Entry:
    try:
        document = json.loads(path.read_bytes())
        ports = {
            int(port): PortGrant(
                id=str(grant["id"]),
                created_at=datetime.fromisoformat(grant["created_at"]).astimezone(UTC),
                expires_at=datetime.fromisoformat(grant["expires_at"]).astimezone(UTC),
                embed_origins=tuple(grant["embed_origins"]),
            )
            for port, grant in document["ports"].items()
        }
        key = document.get("download_key")
        return _Entry(ports=ports, download_key=None if key is None else bytes.fromhex(key))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of grants: {error}") from error
