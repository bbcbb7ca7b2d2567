"""An HTTP request as data, and how to read what comes back.

An `HttpCall` says everything that a driver needs to know to send a request, to decide whether it may be sent again, and
to turn the response into a value or a typed error. The driver moves the bytes and knows none of the paths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

import attrs

from ..errors import RemoteProtocolError

__all__ = ["HttpCall", "HttpResponse", "Resend", "json_body", "json_object", "nothing"]

T = TypeVar("T")


class Resend(Enum):
    """When a request may be sent a second time."""

    ALWAYS = "always"
    """Carrying it out twice does no harm."""
    IF_REFUSED = "if refused"
    """Only when it is certain that it was not carried out."""


@attrs.frozen(kw_only=True)
class HttpResponse:
    """A response whose body was read to its end."""

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """Names are lower case."""
    body: bytes = b""
    sent_before: bool = False
    """Whether an earlier attempt, whose outcome is unknown, may have been carried out."""

    @property
    def success(self) -> bool:
        """Whether the status is any 2xx."""
        return 200 <= self.status < 300


@attrs.frozen(kw_only=True)
class HttpCall(Generic[T]):
    """One request of the control plane or the data plane."""

    method: str
    url: str
    """Absolute, encoded."""
    read: Callable[[HttpResponse], T]
    """Turns the response into the call's value; raises a `SandboxClientError` for anything that is not a success."""
    timeout: float = attrs.field()
    """Seconds for one attempt once it is connected."""
    unbounded_body: bool = False
    """Whether `timeout` bounds each silence of the server, since the body may be of any length, and not the whole."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    """The call's own headers; names are lower case."""
    body: bytes | None = None
    resend: Resend = Resend.ALWAYS
    max_body_bytes: int | None = 64 * 1024 * 1024
    """A longer response is a protocol error; None for no limit."""

    @timeout.validator
    def _check_timeout(self, _: object, value: object) -> None:
        if not isinstance(value, int | float):
            raise TypeError(f"timeout must be a number of seconds, not {type(value).__name__}")
        if not value > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {value!r}")


def json_body(value: Mapping[str, Any]) -> dict[str, Any]:
    """The members of an `HttpCall` that sends a JSON object: its `body` and `headers`.

    Raises:
        TypeError, ValueError: The value cannot be written as JSON.
    """
    return {
        "body": json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii"),
        "headers": {"content-type": "application/json"},
    }


def json_object(response: HttpResponse) -> Mapping[str, Any]:
    """Read a body that must be one JSON object.

    Raises:
        RemoteProtocolError: It is not.
    """
    try:
        value = json.loads(response.body)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(
            f"the server answered {response.status} with a body that is not JSON ({response.body!r:.80}); "
            "check that the endpoint is that of a sandbox service"
        ) from error
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"the server answered with {value!r:.80} where a JSON object was expected")
    return value


def nothing(response: HttpResponse) -> None:
    """Ignore the body of a success."""
