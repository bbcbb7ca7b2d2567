"""Every exception that this library raises on purpose.

::

    SandboxClientError
    ├── SandboxAPIError                     the service failed (500), or this address is not a sandbox service
    ├── SandboxAuthenticationError          no API key, a wrong one, or one without the permission
    ├── SandboxNotReadyError                the sandbox cannot take this request yet
    ├── DataplaneNotConfiguredError         the sandbox has no address for commands and files
    ├── EmbeddedServerError                 the server of the endpoint `local` did not start
    ├── LocalProtocolError                  the caller asked for something illegal in this state; nothing changed
    │   ├── ClientClosedError               the client was used after it was closed
    │   └── ForkedClientError               the client was made in another process, before a fork
    ├── SandboxConnectionError              no answer: network, TLS, websocket
    │   ├── RequestTimeoutError             connected, but no answer in time
    │   ├── RemoteProtocolError             the peer answered something that the protocol does not allow
    │   ├── SandboxServerReloadError        the server asked its clients to connect again
    │   └── SandboxRetryableConnectionError worth another try, perhaps after `retry_after` seconds
    │       └── SandboxConnectTimeoutError  the connection could not be made in time
    ├── ResourceNotFoundError               no such sandbox, snapshot or file
    ├── ResourceInUseError                  something still needs the resource
    ├── ResourceAlreadyExistsError          the resource is there already
    ├── ResourceNameConflictError           the name is taken
    ├── ResourceTimeoutError                a resource was not ready in time
    ├── ResourceCreationError               a resource could not be made
    ├── ValidationError                     the service refused a value
    ├── QuotaExceededError                  a quota or a rate limit is used up
    ├── SandboxOperationError               a command or a file operation failed in the sandbox
    │   └── CommandTimeoutError             the command ran longer than its `timeout`
    ├── TunnelError                         a TCP tunnel failed
    │   ├── TunnelLocalPortError            also an OSError
    │   ├── TunnelPortNotAllowedError
    │   ├── TunnelConnectionRefusedError
    │   └── TunnelUnsupportedVersionError
    └── SandboxTokenVerificationError       a token from the service could not be verified

A wrong argument is a plain `ValueError` or `TypeError`, raised before anything is sent. All of these can be pickled and
copied with their attributes. Names and constructors follow the wire protocol, section 2.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ClientClosedError",
    "CommandTimeoutError",
    "DataplaneNotConfiguredError",
    "EmbeddedServerError",
    "ForkedClientError",
    "LocalProtocolError",
    "QuotaExceededError",
    "RemoteProtocolError",
    "RequestTimeoutError",
    "ResourceAlreadyExistsError",
    "ResourceCreationError",
    "ResourceInUseError",
    "ResourceNameConflictError",
    "ResourceNotFoundError",
    "ResourceTimeoutError",
    "SandboxAPIError",
    "SandboxAuthenticationError",
    "SandboxClientError",
    "SandboxConnectTimeoutError",
    "SandboxConnectionError",
    "SandboxNotReadyError",
    "SandboxOperationError",
    "SandboxRetryableConnectionError",
    "SandboxServerReloadError",
    "SandboxTokenVerificationError",
    "TunnelConnectionRefusedError",
    "TunnelError",
    "TunnelLocalPortError",
    "TunnelPortNotAllowedError",
    "TunnelUnsupportedVersionError",
    "ValidationError",
]


class SandboxClientError(Exception):
    """Base of all errors of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by state, so that no subclass depends on how its constructor is called."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[SandboxClientError], args: tuple[Any, ...], state: Mapping[str, Any]) -> SandboxClientError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class SandboxAPIError(SandboxClientError):
    """The service failed with status 500, or the address does not belong to a sandbox service."""


class SandboxAuthenticationError(SandboxClientError):
    """The service refused the API key: none was sent, it is unknown, or it lacks a permission."""


class SandboxNotReadyError(SandboxClientError):
    """The sandbox exists but cannot take this request in its present state."""


class DataplaneNotConfiguredError(SandboxClientError):
    """The sandbox has no `dataplane_url`, so commands and files cannot be reached. Nothing was sent."""


class EmbeddedServerError(SandboxClientError):
    """The embedded server could not be started, or ended early.

    Attributes:
        hint: What to do about it, when that is known. Part of `str(error)`.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{super().__str__()} Hint: {self.hint}" if self.hint else super().__str__()


class LocalProtocolError(SandboxClientError):
    """The caller asked for something that is illegal in this state. Nothing was sent and nothing changed."""


class ClientClosedError(LocalProtocolError):
    """The client was used after it was closed. Make a new one."""


class ForkedClientError(LocalProtocolError):
    """The client was made before a fork and used in the child. Make a new one in each process."""


class SandboxConnectionError(SandboxClientError):
    """The service or the sandbox could not be reached, or the connection was lost."""


class RequestTimeoutError(SandboxConnectionError):
    """The connection was made, but the answer did not come in time. The request may have been carried out.

    Attributes:
        timeout: The limit in seconds.
    """

    def __init__(self, message: str, timeout: float | None = None) -> None:
        super().__init__(message)
        self.timeout = timeout


class RemoteProtocolError(SandboxConnectionError):
    """The peer sent something that the protocol does not allow. Trying again is not worth it."""


class SandboxServerReloadError(SandboxConnectionError):
    """The server goes away and asks its clients to connect again at once; commands run on."""


class SandboxRetryableConnectionError(SandboxConnectionError):
    """The connection failed in a way that another try may mend.

    Attributes:
        retry_after: Seconds that the server asked to wait, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SandboxConnectTimeoutError(SandboxRetryableConnectionError):
    """The connection could not be made, or not in time."""


class _ResourceError(SandboxClientError):
    """An error about one kind of resource.

    Attributes:
        resource_type: `"sandbox"`, `"snapshot"`, `"file"`, or None when the service did not say.
    """

    def __init__(self, message: str, resource_type: str | None = None) -> None:
        super().__init__(message)
        self.resource_type = resource_type


class ResourceNotFoundError(_ResourceError):
    """There is no such sandbox, snapshot or file; `resource_type` says which."""


class ResourceInUseError(_ResourceError):
    """The resource cannot be removed while something needs it."""


class ResourceAlreadyExistsError(_ResourceError):
    """The resource is there already."""


class ResourceNameConflictError(_ResourceError):
    """The new name belongs to another resource."""


class ResourceTimeoutError(_ResourceError):
    """The resource did not become ready in time.

    Attributes:
        last_status: The last status that was seen, or None. Part of `str(error)`.
    """

    def __init__(self, message: str, resource_type: str | None = None, last_status: str | None = None) -> None:
        super().__init__(message, resource_type)
        self.last_status = last_status

    def __str__(self) -> str:
        return f"{super().__str__()} (last_status: {self.last_status})" if self.last_status else super().__str__()


class ResourceCreationError(_ResourceError):
    """The resource could not be made.

    Attributes:
        error_type: The service's word for the reason, such as `"ImagePull"`, or None. Part of `str(error)`.
    """

    def __init__(self, message: str, resource_type: str | None = None, error_type: str | None = None) -> None:
        super().__init__(message, resource_type)
        self.error_type = error_type

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.error_type}]" if self.error_type else super().__str__()


class ValidationError(SandboxClientError):
    """The service refused a value.

    Attributes:
        field: The name of the refused member, or None.
        details: The service's list of complaints, each with `loc`, `msg` and `type`; may be empty.
        error_type: The service's word for the reason, or None.
    """

    def __init__(
        self,
        message: str,
        field: str | None = None,
        details: Sequence[Mapping[str, Any]] | None = None,
        error_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.details: list[dict[str, Any]] = [dict(detail) for detail in details or ()]
        self.error_type = error_type


class QuotaExceededError(SandboxClientError):
    """A quota or a rate limit is used up.

    Attributes:
        quota_type: `"sandbox_count"`, `"cpu"`, `"memory"`, `"storage"`, or None when the message names none of them.
    """

    def __init__(self, message: str, quota_type: str | None = None) -> None:
        super().__init__(message)
        self.quota_type = quota_type


class SandboxOperationError(SandboxClientError):
    """A command or a file operation failed inside the sandbox.

    Attributes:
        operation: `"command"`, `"reconnect"`, `"read"`, `"write"`, or None.
        error_type: The sandbox's word for the reason, such as `"CommandNotFound"`, or None. Part of `str(error)`.
    """

    def __init__(self, message: str, operation: str | None = None, error_type: str | None = None) -> None:
        super().__init__(message)
        self.operation = operation
        self.error_type = error_type

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.error_type}]" if self.error_type else super().__str__()


class CommandTimeoutError(SandboxOperationError):
    """The command ran longer than its `timeout` and was killed.

    Attributes:
        timeout: The limit in seconds, when it is known.
    """

    def __init__(self, message: str, timeout: float | None = None) -> None:
        super().__init__(message, operation="command", error_type="CommandTimeout")
        self.timeout = timeout


class TunnelError(SandboxClientError):
    """A TCP tunnel could not be opened, or broke."""


class TunnelLocalPortError(TunnelError, OSError):
    """The local port of a tunnel cannot be listened on, mostly because something else does."""


class TunnelPortNotAllowedError(TunnelError):
    """The sandbox does not let this port be reached.

    Attributes:
        port: The port in the sandbox; None for a unix socket.
    """

    def __init__(self, message: str, *, port: int | None) -> None:
        super().__init__(message)
        self.port = port


class TunnelConnectionRefusedError(TunnelError):
    """Nothing listens at this port in the sandbox.

    Attributes:
        port: The port in the sandbox; None for a unix socket.
    """

    def __init__(self, message: str, *, port: int | None) -> None:
        super().__init__(message)
        self.port = port


class TunnelUnsupportedVersionError(TunnelError):
    """The sandbox speaks another version of the tunnel protocol."""


class SandboxTokenVerificationError(SandboxClientError):
    """A token or a signature that claims to come from the service could not be verified."""
