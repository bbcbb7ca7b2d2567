"""`protocol/command_errors.py`: what a user gets to see (wire protocol, sections 2.1, 3.2 and 3.4)."""

from __future__ import annotations

import pytest

from sandbox_aio.errors import (
    CommandTimeoutError,
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
    SandboxOperationError,
    SandboxRetryableConnectionError,
)
from sandbox_aio.protocol.command_errors import (
    RETRYABLE_STATUSES,
    error_of_deadline,
    error_of_losses,
    error_of_refusal,
    error_of_reply,
)
from sandbox_aio.protocol.deadlines import Due
from sandbox_aio.protocol.frames import ErrorReply
from sandbox_aio.protocol.policy import CommandPolicy
from sandbox_aio.protocol.websocket import Refused


def reply(error_type: str, *, attaching: bool) -> SandboxClientError:
    frame = ErrorReply(error="it says", error_type=error_type)
    return error_of_reply(frame, command_id="c", attaching=attaching, timeout=60)


@pytest.mark.parametrize(
    ("error_type", "attaching", "operation", "text"),
    [
        ("CommandError", False, "command", "it says [CommandError]"),
        ("CommandError", True, "reconnect", "it says [CommandError]"),
        ("CommandNotFound", False, "command", "it says [CommandNotFound]"),
        ("CommandNotFound", True, "reconnect", "Command not found: c [CommandNotFound]"),
        ("SessionExpired", True, "reconnect", "Session expired: c [SessionExpired]"),
        ("Whatever", True, "reconnect", "it says [Whatever]"),
    ],
)
def test_error_frames(error_type: str, attaching: bool, operation: str, text: str) -> None:
    error = reply(error_type, attaching=attaching)
    assert type(error) is SandboxOperationError
    assert (error.operation, error.error_type, str(error)) == (operation, error_type, text)


@pytest.mark.parametrize("attaching", [False, True])
def test_a_timeout_is_told_apart(attaching: bool) -> None:
    error = reply("CommandTimeout", attaching=attaching)
    assert type(error) is CommandTimeoutError
    assert error.timeout == 60


def refusal(status: int, body: bytes = b"", **headers: bytes) -> SandboxClientError:
    pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return error_of_refusal(Refused(status=status, headers=pairs, body=body))


@pytest.mark.parametrize("status", sorted(RETRYABLE_STATUSES))
@pytest.mark.parametrize(("value", "seconds"), [(b"2", 2.0), (b"\xff", None), (b"never", None)])
def test_refusals_that_may_pass(status: int, value: bytes, seconds: float | None) -> None:
    error = refusal(status, Retry_After=value)
    assert type(error) is SandboxRetryableConnectionError
    assert error.retry_after == seconds
    assert str(error) == f"the server refused the connection with status {status}"
    assert refusal(status).__dict__ == {"retry_after": None}


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (401, SandboxAuthenticationError, "check the API key"),
        (403, SandboxAuthenticationError, "check the API key"),
        (404, ResourceNotFoundError, "the sandbox may have been deleted"),
        (301, SandboxConnectionError, "use the address that it redirects to"),
        (308, SandboxConnectionError, "use the address that it redirects to"),
        (400, SandboxConnectionError, "status 400"),
        (200, SandboxConnectionError, "status 200"),
        (100, SandboxConnectionError, "status 100"),
    ],
)
def test_refusals_that_no_try_mends(status: int, kind: type[SandboxClientError], hint: str) -> None:
    error = refusal(status)
    assert type(error) is kind
    assert hint in str(error)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"detail": {"error": "Forbidden", "message": "not yours"}}', ": not yours"),
        (b'{"detail": "not yours"}', ": not yours"),
        *[
            (body, "")
            for body in (b"", b"no", b"[]", b'"x"', b"{}", b'{"detail": 5}', b'{"detail": {}}', b"\xff", b"5")
        ],
        *[
            (body, "")
            for body in (b'{"detail": {"message": 5}}', b'{"detail": null}', b'{"detail": []}', b"[" * 16_000)
        ],
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_refusal_repeats_what_its_body_says(body: bytes, reason: str) -> None:
    assert str(refusal(400, body)) == f"the server refused the connection with status 400{reason}"


@pytest.mark.parametrize(
    ("due", "kind", "text"),
    [
        (Due.KILL, SandboxConnectionError, "its exit was not reported within 10 s"),
        (Due.RUN, CommandTimeoutError, "the command's time of 60 s passed, and the sandbox did not end it within 30 s"),
        (Due.KILL_AGAIN, SandboxConnectionError, "a kill had no effect"),
        (Due.START, SandboxConnectTimeoutError, "the command did not start within 120 s"),
        (Due.OPEN, SandboxConnectTimeoutError, "the connection was not established within 30 s"),
    ],
)
def test_what_came_due_is_told_with_its_bound(due: Due, kind: type[SandboxClientError], text: str) -> None:
    error = error_of_deadline(due, CommandPolicy(), 60)
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("started", [False, True])
def test_losses_tell_the_last_of_them_and_what_to_do(started: bool) -> None:
    last = SandboxConnectionError("gone")
    error = error_of_losses(last, command_id="c", tries=5, started=started)
    assert type(error) is SandboxConnectionError
    assert error.__cause__ is last
    what = "attached to" if started else "started"
    assert str(error).startswith(f"the command could not be {what} in 5 tries; the last failed: gone")
    assert ("reconnect('c') attaches to it again" in str(error)) is started
