"""Which part of the server a path is for, decided on the path as it was sent. Wire protocol, sections 1.4 and 1.5."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

import attrs

from .hosts import ServiceTarget

__all__ = ["BASES", "ControlPlane", "DataPlane", "Download", "Health", "KeySet", "Route", "Service", "route"]

BASES: Final = (b"/api/v2/sandboxes", b"/v2/sandboxes")

COLLECTIONS: Final = frozenset(("boxes", "snapshots", "snapshots-by-name", "registries", "usage"))
"""First segments that are never the name of a sandbox."""

DAEMON_PATHS: Final = frozenset(
    (
        b"/execute",
        b"/execute/ws",
        b"/execute/stream/start",
        b"/execute/stream/resume",
        b"/upload",
        b"/download",
        b"/glob",
        b"/grep",
        b"/tunnel",
    )
)


@attrs.frozen
class Health:
    """`GET /healthz`."""


@attrs.frozen
class ControlPlane:
    """A path for the ASGI app; `base` is what precedes its routes, b"" for a path that is nobody's."""

    base: bytes


@attrs.frozen
class DataPlane:
    """A path for the daemon of the sandbox whose name or id is `reference`."""

    reference: str
    path: bytes


@attrs.frozen
class Service:
    """A path for a program in a sandbox, in the path form; b"" for the path that only lacks its last slash."""

    target: ServiceTarget
    path: bytes


@attrs.frozen
class Download:
    """A download link."""

    token: str


@attrs.frozen
class KeySet:
    """The public keys that service tokens are checked with."""


Route = Health | ControlPlane | DataPlane | Service | Download | KeySet


def route(path: bytes) -> Route:
    """Where a path leads. One that no daemon serves is the control plane's, which says so without waking a sandbox."""
    if path == b"/healthz":
        return Health()
    for base in BASES:
        if path.startswith(base + b"/"):
            segment, slash, rest = path[len(base) + 1 :].partition(b"/")
            reference = unquote(segment.decode("latin-1"))
            if reference not in COLLECTIONS and slash + rest in DAEMON_PATHS:
                return DataPlane(reference, slash + rest)
            return ControlPlane(base)
    if path.startswith(b"/svc/"):
        sandbox_id, _, rest = path[5:].partition(b"/")
        port, slash, rest = rest.partition(b"/")
        target = ServiceTarget.of(sandbox_id.decode("latin-1"), port.decode("latin-1"))
        return ControlPlane(b"") if target is None else Service(target, slash + rest)
    if path.startswith(b"/dl/"):
        return Download(path[4:].decode("latin-1"))
    return KeySet() if path == b"/.well-known/jwks.json" else ControlPlane(b"")
