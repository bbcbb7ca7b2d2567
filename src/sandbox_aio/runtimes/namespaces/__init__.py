"""The `namespaces` runtime: Linux namespaces, an overlay, and nothing that pip does not bring."""

from __future__ import annotations

from .runtime import NamespacesRuntime
from .snapshot_host import HOST_SNAPSHOT_ID

__all__ = ["HOST_SNAPSHOT_ID", "NamespacesRuntime"]
