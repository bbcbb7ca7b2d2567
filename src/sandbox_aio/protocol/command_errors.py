"""What a command's failures become for the user (wire protocol, sections 3.2 and 3.4)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..errors import (
    CommandTimeoutError,
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
    SandboxOperationError,
    SandboxRetryableConnectionError,
)
from .deadlines import Due
from .retry import parse_retry_after

if TYPE_CHECKING:
    from .frames import ErrorReply
    from .policy import CommandPolicy
    from .websocket import Refused

__all__ = ["RETRYABLE_STATUSES", "error_of_deadline", "error_of_losses", "error_of_refusal", "error_of_reply"]

RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})
"""Answers to an upgrade after which another try may succeed (section 3.2)."""


def error_of_reply(reply: ErrorReply, *, command_id: str, attaching: bool, timeout: float | None) -> SandboxClientError:
    """Return what an `error` frame means.

    Args:
        attaching: whether the user asked to reconnect, rather than to run.
        timeout: the limit that the command was given, if it is known.
    """
    if reply.error_type == "CommandTimeout":
        return CommandTimeoutError(reply.error, timeout)
    operation = "reconnect" if attaching else "command"
    unknown = {
        "CommandNotFound": f"Command not found: {command_id}",
        "SessionExpired": f"Session expired: {command_id}",
    }
    message = unknown.get(reply.error_type) if attaching else None
    return SandboxOperationError(message or reply.error, operation, reply.error_type)


def error_of_deadline(due: Due, policy: CommandPolicy, timeout: float) -> SandboxClientError:
    """Return what it means that a bound of `policy`, or the command's own `timeout` with its grace, has passed."""
    if due is Due.KILL:
        return SandboxConnectionError(
            f"the command was killed, but its exit was not reported within {policy.kill_grace:g} s"
        )
    if due is Due.RUN:
        return CommandTimeoutError(
            f"the command's time of {timeout:g} s passed, and the sandbox did not end it within"
            f" {policy.timeout_grace:g} s more",
            timeout,
        )
    if due is Due.KILL_AGAIN:
        return SandboxConnectionError("a kill had no effect behind input that the command does not read")
    if due is Due.START:
        return SandboxConnectTimeoutError(f"the command did not start within {policy.start_timeout:g} s")
    return SandboxConnectTimeoutError(f"the connection was not established within {policy.open_timeout:g} s")


def error_of_losses(last: SandboxClientError, *, command_id: str, tries: int, started: bool) -> SandboxClientError:
    """Return what it means that no more connections will be tried, after the `last` one failed."""
    what = "attached to" if started else "started"
    message = f"the command could not be {what} in {tries} tries; the last failed: {last}"
    if started:
        message += f"; it may still run: reconnect({command_id!r}) attaches to it again"
    error = SandboxConnectionError(message)
    error.__cause__ = last
    return error


def error_of_refusal(refused: Refused) -> SandboxClientError:
    """Return what an answer other than 101 means.

    Those of `RETRYABLE_STATUSES` become `SandboxRetryableConnectionError`.
    """
    status = refused.status
    reason = _reason(refused.body)
    detail = f": {reason}" if reason else ""
    if status in RETRYABLE_STATUSES:
        header = next((value for name, value in refused.headers if name.lower() == b"retry-after"), None)
        return SandboxRetryableConnectionError(
            f"the server refused the connection with status {status}{detail}",
            retry_after=parse_retry_after(header.decode("latin-1") if header is not None else None),
        )
    if status == 401 or status == 403:
        return SandboxAuthenticationError(
            f"the server refused the connection with status {status}{detail}; check the API key and its permissions"
        )
    if status == 404:
        return ResourceNotFoundError(
            f"the server has nothing at this address (status 404{detail}); the sandbox may have been deleted", "sandbox"
        )
    if 300 <= status < 400:
        return SandboxConnectionError(
            f"the server answered with a redirect (status {status}), which is not followed, since the request bears"
            " a key; use the address that it redirects to"
        )
    return SandboxConnectionError(f"the server refused the connection with status {status}{detail}")


def _reason(body: bytes) -> str | None:
    """Return the message of an error body (section 2.1), if it has one."""
    try:
        detail = json.loads(body)["detail"]
        message = detail if isinstance(detail, str) else detail["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return message if isinstance(message, str) else None
