"""What a tunnel's failures become for the user (wire protocol, sections 5.4 and 5.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import (
    SandboxConnectionError,
    TunnelConnectionRefusedError,
    TunnelError,
    TunnelPortNotAllowedError,
    TunnelUnsupportedVersionError,
)
from .command_errors import error_of_refusal
from .tunnel_preamble import TunnelStatus

if TYPE_CHECKING:
    from ..errors import SandboxClientError
    from .tunnel_preamble import TunnelTarget
    from .websocket import Refused

__all__ = ["error_of_loss", "error_of_status"]


def error_of_status(status: int | None, target: TunnelTarget) -> TunnelError:
    """Return what the daemon's byte means; None is an end without one."""
    if status == TunnelStatus.PORT_NOT_ALLOWED:
        return TunnelPortNotAllowedError(f"the sandbox does not let {target} be reached", port=target.port)
    if status == TunnelStatus.REFUSED:
        return TunnelConnectionRefusedError(f"nothing in the sandbox accepts connections at {target}", port=target.port)
    if status == TunnelStatus.UNSUPPORTED_VERSION:
        what = "tunnels to unix sockets" if target.path is not None else "this version of tunnels"
        return TunnelUnsupportedVersionError(f"the server does not know {what}")
    if status is None:
        return TunnelError(f"the sandbox broke the connection to {target} off")
    return TunnelError(f"the sandbox answered the connection to {target} with the unknown status {status}")


def error_of_loss(reason: str, refused: Refused | None) -> SandboxClientError:
    """Return what it means that a tunnel's connection is over, or was never made."""
    if refused is not None:
        return error_of_refusal(refused)
    return SandboxConnectionError(f"the tunnel has lost its connection: {reason}")
