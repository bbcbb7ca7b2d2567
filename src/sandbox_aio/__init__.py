"""Sandboxes for agents: an async client on asyncio and trio, a sans-IO core, a sync facade, and a server.

    from sandbox_aio import AsyncSandboxClient

    async with AsyncSandboxClient() as client, client.sandbox(snapshot_id=...) as sandbox:
        result = await sandbox.run("echo hi")

Importing this package loads the errors and the data classes only. A client, and the network libraries below it, are
loaded when they are first named, so that `sandbox_aio.protocol` can be used without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    ClientClosedError,
    CommandTimeoutError,
    DataplaneNotConfiguredError,
    EmbeddedServerError,
    ForkedClientError,
    LocalProtocolError,
    QuotaExceededError,
    RemoteProtocolError,
    RequestTimeoutError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxAPIError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
    SandboxNotReadyError,
    SandboxOperationError,
    SandboxRetryableConnectionError,
    SandboxServerReloadError,
    SandboxTokenVerificationError,
    TunnelConnectionRefusedError,
    TunnelError,
    TunnelLocalPortError,
    TunnelPortNotAllowedError,
    TunnelUnsupportedVersionError,
    ValidationError,
)
from .models import (
    CALLBACK_SIGNATURE_HEADER,
    USER_TOKEN_HEADER,
    AccessDelegation,
    AccessDelegationMode,
    AudienceMatcher,
    DownloadContentDisposition,
    DownloadURL,
    ExecutionResult,
    FileChunk,
    FileInfo,
    FileStat,
    GlobResult,
    GrepMatch,
    GrepResult,
    OutputChunk,
    OutputGap,
    Registry,
    RegistryPage,
    ResourceStatus,
    RunConfig,
    SandboxCallback,
    SandboxCallbackIdentity,
    SandboxCallbackRequest,
    SandboxRecord,
    SandboxUser,
    ServiceAccess,
    ServiceLoginURL,
    Snapshot,
    SnapshotTag,
    TunnelStatistics,
)
from .proxy_rules import attribution, aws_auth, gcp_auth, opaque_secret, proxy_config, workspace_secret

if TYPE_CHECKING:
    from .client.client import AsyncSandboxClient
    from .client.command import AsyncCommandHandle
    from .client.registries import AsyncRegistries
    from .client.sandbox import AsyncSandbox
    from .client.service_url import AsyncServiceResponse, AsyncServiceURL
    from .client.service_websocket import AsyncServiceWebSocket
    from .client.tunnel import AsyncTunnel
    from .client.verifier import SandboxTokenVerifier
    from .sync import (
        CommandHandle,
        Registries,
        Sandbox,
        SandboxClient,
        ServiceResponse,
        ServiceURL,
        ServiceWebSocket,
        Tunnel,
    )

__all__ = [
    "CALLBACK_SIGNATURE_HEADER",
    "USER_TOKEN_HEADER",
    "AccessDelegation",
    "AccessDelegationMode",
    "AsyncCommandHandle",
    "AsyncRegistries",
    "AsyncSandbox",
    "AsyncSandboxClient",
    "AsyncServiceResponse",
    "AsyncServiceURL",
    "AsyncServiceWebSocket",
    "AsyncTunnel",
    "AudienceMatcher",
    "ClientClosedError",
    "CommandHandle",
    "CommandTimeoutError",
    "DataplaneNotConfiguredError",
    "DownloadContentDisposition",
    "DownloadURL",
    "EmbeddedServerError",
    "ExecutionResult",
    "FileChunk",
    "FileInfo",
    "FileStat",
    "ForkedClientError",
    "GlobResult",
    "GrepMatch",
    "GrepResult",
    "LocalProtocolError",
    "OutputChunk",
    "OutputGap",
    "QuotaExceededError",
    "Registries",
    "Registry",
    "RegistryPage",
    "RemoteProtocolError",
    "RequestTimeoutError",
    "ResourceAlreadyExistsError",
    "ResourceCreationError",
    "ResourceInUseError",
    "ResourceNameConflictError",
    "ResourceNotFoundError",
    "ResourceStatus",
    "ResourceTimeoutError",
    "RunConfig",
    "Sandbox",
    "SandboxAPIError",
    "SandboxAuthenticationError",
    "SandboxCallback",
    "SandboxCallbackIdentity",
    "SandboxCallbackRequest",
    "SandboxClient",
    "SandboxClientError",
    "SandboxConnectTimeoutError",
    "SandboxConnectionError",
    "SandboxNotReadyError",
    "SandboxOperationError",
    "SandboxRecord",
    "SandboxRetryableConnectionError",
    "SandboxServerReloadError",
    "SandboxTokenVerificationError",
    "SandboxTokenVerifier",
    "SandboxUser",
    "ServiceAccess",
    "ServiceLoginURL",
    "ServiceResponse",
    "ServiceURL",
    "ServiceWebSocket",
    "Snapshot",
    "SnapshotTag",
    "Tunnel",
    "TunnelConnectionRefusedError",
    "TunnelError",
    "TunnelLocalPortError",
    "TunnelPortNotAllowedError",
    "TunnelStatistics",
    "TunnelUnsupportedVersionError",
    "ValidationError",
    "attribution",
    "aws_auth",
    "gcp_auth",
    "opaque_secret",
    "proxy_config",
    "workspace_secret",
]

_LAZY = {
    "AsyncCommandHandle": ".client.command",
    "AsyncRegistries": ".client.registries",
    "AsyncSandbox": ".client.sandbox",
    "AsyncSandboxClient": ".client.client",
    "AsyncServiceResponse": ".client.service_url",
    "AsyncServiceURL": ".client.service_url",
    "AsyncServiceWebSocket": ".client.service_websocket",
    "AsyncTunnel": ".client.tunnel",
    "CommandHandle": ".sync",
    "Registries": ".sync",
    "Sandbox": ".sync",
    "SandboxClient": ".sync",
    "SandboxTokenVerifier": ".client.verifier",
    "ServiceResponse": ".sync",
    "ServiceURL": ".sync",
    "ServiceWebSocket": ".sync",
    "Tunnel": ".sync",
}
"""Where the names that need the network live."""


def __getattr__(name: str) -> Any:
    """Load a client when it is first named (PEP 562)."""
    home = _LAZY.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
