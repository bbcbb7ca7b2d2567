"""What an unsuccessful HTTP response means (wire protocol, sections 2.1 to 2.3).

Each function tells the typed error of a response; the first row that matches wins. Any status and any body will do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import attrs

from .. import errors

if TYPE_CHECKING:
    from .http_call import HttpResponse

__all__ = [
    "ErrorBody",
    "create_error",
    "execute_error",
    "file_error",
    "list_error",
    "resource_error",
    "update_error",
    "write_error",
]


@attrs.frozen(kw_only=True)
class ErrorBody:
    """The service's words about a failure (section 2.1)."""

    message: str
    """Never empty; ends with the `error_id` if there is one."""
    error: str | None = None
    """The service's name for the kind of failure."""
    details: tuple[Mapping[str, Any], ...] = ()
    """The list form: what is wrong with each member."""

    @classmethod
    def of(cls, response: HttpResponse) -> ErrorBody:
        """Read any body."""
        try:
            data = json.loads(response.body)
        except (ValueError, RecursionError):
            data = None
        detail = data.get("detail") if isinstance(data, dict) else None
        fallback = f"the server answered {response.status}{_phrase(response.status)} and gave no reason"
        if isinstance(detail, str):
            return cls(message=detail or fallback)
        if isinstance(detail, list):
            details = tuple(item for item in detail if isinstance(item, dict))
            return cls(
                message="; ".join(str(item["msg"]) for item in details if item.get("msg")) or fallback, details=details
            )
        if not isinstance(detail, dict):
            return cls(message=fallback)
        error = _text(detail.get("error"))
        message = _text(detail.get("message")) or (f"{fallback} but {error!r}" if error else fallback)
        error_id = _text(detail.get("error_id"))
        return cls(message=f"{message} (error_id={error_id})" if error_id else message, error=error)

    @property
    def field(self) -> str | None:
        """The member that the first complaint is about."""
        location = self.details[0].get("loc") if self.details else None
        return str(location[-1]) if isinstance(location, list) and location else None


def create_error(response: HttpResponse) -> errors.SandboxClientError:
    """The error of `POST /boxes`."""
    body = ErrorBody.of(response)
    match response.status:
        case 408:
            return errors.ResourceTimeoutError(body.message, "sandbox")
        case 409:
            return errors.ResourceAlreadyExistsError(body.message, "sandbox")
        case 422 if any(detail.get("type") == "value_error" for detail in body.details):
            return errors.ValidationError(body.message, body.field, body.details, body.error)
        case 422:
            return errors.ResourceCreationError(body.message, "sandbox", body.error)
        case 503:
            return errors.ResourceCreationError(body.message, "sandbox", body.error or "Unschedulable")
    return _control_plane_error(response, body)


def resource_error(response: HttpResponse, resource_type: str) -> errors.SandboxClientError:
    """The error of a request about one sandbox or one snapshot."""
    body = ErrorBody.of(response)
    if response.status == 404:
        return errors.ResourceNotFoundError(body.message, resource_type)
    return _control_plane_error(response, body)


def list_error(response: HttpResponse) -> errors.SandboxClientError:
    """The error of `GET /boxes` and `GET /snapshots`, where a 404 means a wrong endpoint."""
    body = ErrorBody.of(response)
    if response.status == 404:
        return errors.SandboxAPIError(f"{body.message}; check that the endpoint is that of a sandbox service")
    return _control_plane_error(response, body)


def update_error(response: HttpResponse, *, proxy_config: bool) -> errors.SandboxClientError:
    """The error of `PATCH /boxes/{name}`; `proxy_config` says whether one was sent."""
    body = ErrorBody.of(response)
    if response.status == 409:
        return errors.ResourceNameConflictError(body.message, "sandbox")
    if proxy_config and response.status == 400 and body.error == "InvalidRequest":
        return errors.SandboxNotReadyError(body.message)
    return resource_error(response, "sandbox")


def file_error(response: HttpResponse, path: str, sandbox: str) -> errors.SandboxClientError:
    """The error of reading, searching or listing `path` in a sandbox."""
    if response.status == 404:
        body = ErrorBody.of(response)
        reason = f": {body.message}" if response.body else ""
        return errors.ResourceNotFoundError(f"there is no {path!r} in sandbox {sandbox!r}{reason}", "file")
    if response.status == 416:
        size = response.headers.get("content-range", "unknown")
        return errors.SandboxOperationError(f"the range lies outside {path!r} (Content-Range: {size})")
    return write_error(response)


def write_error(response: HttpResponse) -> errors.SandboxClientError:
    """The error of a data-plane request, apart from those above."""
    body = ErrorBody.of(response)
    status, error = response.status, body.error
    operation = {"WriteError": "write", "ReadError": "read", "CommandError": "command"}.get(error or "")
    if operation is not None:
        return errors.SandboxOperationError(body.message, operation, error)
    if status == 403:
        return errors.SandboxOperationError(body.message, None, "PermissionDenied")
    if status == 502 and error == "ConnectionError":
        return errors.SandboxConnectionError(body.message)
    if (status, error) in ((400, "NotReady"), (503, "ServiceUnavailable")):
        return errors.SandboxNotReadyError(body.message)
    if status == 404 or error == "FileNotFound":
        return errors.ResourceNotFoundError(body.message, "file")
    if status == 401:
        return errors.SandboxAuthenticationError(_with_key_hint(body.message))
    return errors.SandboxClientError(_with_location(body.message, response))


def execute_error(response: HttpResponse, timeout: float | None) -> errors.SandboxClientError:
    """The error of `POST /execute`; `timeout` is what the command was given."""
    body = ErrorBody.of(response)
    if body.error == "CommandTimeout":
        return errors.CommandTimeoutError(body.message, timeout)
    if response.status == 404 and body.error != "FileNotFound":
        return errors.ResourceNotFoundError(body.message, "sandbox")
    return write_error(response)


def _control_plane_error(response: HttpResponse, body: ErrorBody) -> errors.SandboxClientError:
    match response.status:
        case 401 | 403:
            return errors.SandboxAuthenticationError(_with_key_hint(body.message))
        case 404:
            return errors.ResourceNotFoundError(body.message, None)
        case 422:
            return errors.ValidationError(body.message, body.field, body.details, body.error)
        case 429:
            return errors.QuotaExceededError(body.message, _quota_type(body.message))
        case 502 if body.error == "ConnectionError":
            return errors.SandboxConnectionError(body.message)
        case 500:
            return errors.SandboxAPIError(body.message)
    return errors.SandboxClientError(_with_location(body.message, response))


def _quota_type(message: str) -> str | None:
    message = message.lower()
    if "sandbox" in message and ("count" in message or "limit" in message):
        return "sandbox_count"
    return next((quota for quota in ("cpu", "memory", "storage") if quota in message), None)


def _with_key_hint(message: str) -> str:
    return f"{message}. Pass api_key, or set LANGSMITH_API_KEY, to a key that this server knows"


def _with_location(message: str, response: HttpResponse) -> str:
    location = response.headers.get("location")
    if 300 <= response.status < 400 and location:
        return (
            f"{message}; it points to {location!r}, and redirects are not followed: use the final address as endpoint"
        )
    return message


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _phrase(status: int) -> str:
    try:
        return f" ({HTTPStatus(status).phrase})"
    except ValueError:
        return ""
