"""The sync clients: the async ones, with calls that block, on a thread of their own. Import them from `sandbox_aio`."""

from __future__ import annotations

from ._generated import (
    CommandHandle,
    Registries,
    Sandbox,
    SandboxClient,
    ServiceResponse,
    ServiceURL,
    ServiceWebSocket,
    Tunnel,
)
from ._portal import Portal

__all__ = [
    "CommandHandle",
    "Portal",
    "Registries",
    "Sandbox",
    "SandboxClient",
    "ServiceResponse",
    "ServiceURL",
    "ServiceWebSocket",
    "Tunnel",
]
