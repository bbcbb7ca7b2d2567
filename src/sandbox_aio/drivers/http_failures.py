"""What an exception of httpx means: how the attempt ended, and the typed error to raise if it was the last one."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from ..errors import (
    RemoteProtocolError,
    RequestTimeoutError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
)
from ..protocol.http_retry import Failure

if TYPE_CHECKING:
    from ..protocol.http_call import HttpCall

__all__ = ["AttemptFailed", "classify", "took_too_long"]


class AttemptFailed(Exception):
    """An attempt ended without a response. Never leaves the drivers."""

    def __init__(self, failure: Failure, error: SandboxClientError) -> None:
        super().__init__(str(error))
        self.failure = failure
        self.error = error


def took_too_long(call: HttpCall[Any]) -> AttemptFailed:
    """No complete answer within the call's time."""
    message = f"{_name(call)} had no complete answer within {call.timeout:g} s; the server may have carried it out"
    return AttemptFailed(Failure.TIMED_OUT, RequestTimeoutError(message, call.timeout))


def classify(error: httpx.HTTPError | httpx.InvalidURL, call: HttpCall[Any]) -> AttemptFailed | SandboxClientError:
    """An attempt that may be worth another one, or the error to raise at once."""
    origin = _origin(call)
    reason = str(error) or type(error).__name__
    match error:
        case httpx.ConnectTimeout() | httpx.PoolTimeout():
            message = f"could not connect to {origin} in time; check the address, and that the server runs"
            return AttemptFailed(Failure.NOT_SENT, SandboxConnectTimeoutError(message))
        case httpx.ConnectError() if _is_certificate_error(error):
            return SandboxConnectionError(f"the certificate of {origin} is not trusted: {reason}")
        case httpx.ConnectError() | httpx.ProxyError():
            message = f"could not connect to {origin} ({reason}); check the address, and that the server runs"
            return AttemptFailed(Failure.NOT_SENT, SandboxConnectionError(message))
        case httpx.TimeoutException():
            return took_too_long(call)
        case httpx.NetworkError():
            return AttemptFailed(Failure.INTERRUPTED, SandboxConnectionError(f"{_name(call)} was cut off: {reason}"))
        case httpx.RemoteProtocolError() if reason.startswith(("Server disconnected", "peer closed connection")):
            return AttemptFailed(Failure.INTERRUPTED, SandboxConnectionError(f"{_name(call)} was cut off: {reason}"))
        case httpx.RemoteProtocolError() | httpx.DecodingError():
            return RemoteProtocolError(f"{origin} does not speak HTTP as it should ({reason}); check the address")
    return SandboxClientError(f"{_name(call)} could not be sent: {reason}")


def too_long(call: HttpCall[Any], limit: int) -> SandboxClientError:
    """The response is larger than any that the protocol knows."""
    return RemoteProtocolError(f"the answer to {_name(call)} is longer than {limit} bytes")


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _origin(call: HttpCall[Any]) -> str:
    parts = urlsplit(call.url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _name(call: HttpCall[Any]) -> str:
    return f"{call.method} {_origin(call)}{urlsplit(call.url).path}"
