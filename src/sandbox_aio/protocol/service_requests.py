"""Requests for service URLs and download links, and the rules of a request to a service (sections 6.1 to 6.5).

`ServiceWish` and `DownloadWish` render themselves; `ServiceAttempts` decides what follows each attempt of one request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import attrs

from ..errors import RemoteProtocolError
from ..models import DownloadURL, ServiceLoginURL
from .endpoint import quote_name
from .http_call import HttpCall, HttpResponse, Resend, json_body, json_object
from .http_errors import ErrorBody, resource_error
from .http_retry import Failure, HttpRetry

if TYPE_CHECKING:
    from .http_requests import ControlPlane

__all__ = [
    "TOKEN_HEADER",
    "DownloadWish",
    "ServiceAttempts",
    "ServiceURLRecord",
    "ServiceWish",
    "service_target",
    "websocket_target",
]

T = TypeVar("T")

TOKEN_HEADER: Final = "x-langsmith-sandbox-service-token"

MAX_LIFETIME: Final = 24 * 3600
"""Seconds that a service token is valid at most."""

MAX_MARGIN: Final = 30.0
"""Seconds before its end at which a token is renewed; earlier by no more than a quarter of its life."""

IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
"""Methods that do no more harm when they are carried out twice (RFC 9110, section 9.2.2)."""

PASSING: Final = frozenset((502, 503, 504))
"""Answers for a service that may soon be able to do what it cannot yet."""


@attrs.frozen(kw_only=True)
class ServiceURLRecord:
    """What leads to a service, with the token for it."""

    browser_url: str = attrs.field(repr=False)
    """Holds the token."""
    service_url: str
    token: str = attrs.field(repr=False)
    expires_at: str
    embed_url: str = attrs.field(default="", repr=False)
    """Holds the token; empty unless origins to embed in were named."""
    embed_origins: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ServiceURLRecord:
        """Read the service's JSON object."""
        required = ("browser_url", "service_url", "token", "expires_at")
        for name in required:
            if not isinstance(data.get(name), str) or not data[name]:
                raise RemoteProtocolError(f"the server sent a service URL whose {name!r} is not a text")
        embed_url, origins = data.get("embed_url") or "", data.get("embed_origins") or ()
        if not isinstance(embed_url, str) or not isinstance(origins, list | tuple):
            raise RemoteProtocolError(
                "the server sent a service URL whose embed_url or embed_origins have a wrong type"
            )
        return cls(
            **{name: data[name] for name in required}, embed_url=embed_url, embed_origins=tuple(map(str, origins))
        )


@attrs.frozen(kw_only=True)
class ServiceWish:
    """Which service to reach, and how."""

    port: int
    expires_in_seconds: int = 600
    access: str | None = None
    embed_origins: Sequence[str] | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what no server takes.

        Raises:
            ValueError: It says what is wrong.
        """
        if not 1 <= self.port <= 0xFFFF:
            raise ValueError(f"a port is 1 to 65535, not {self.port!r}")
        if not 1 <= self.expires_in_seconds <= MAX_LIFETIME:
            raise ValueError(f"expires_in_seconds is 1 to {MAX_LIFETIME}, not {self.expires_in_seconds!r}")
        if self.access not in (None, "restricted", "workspace"):
            raise ValueError(f"access is 'restricted', 'workspace' or None, not {self.access!r}")
        if isinstance(self.embed_origins, str):
            raise ValueError("embed_origins is a list of origins, not one text")

    @property
    def margin(self) -> float:
        """Seconds before its end at which the token is renewed."""
        return min(MAX_MARGIN, self.expires_in_seconds / 4)

    def token_call(self, control: ControlPlane, name: str) -> HttpCall[ServiceURLRecord]:
        """`POST /boxes/{name}/service-url` for a token."""

        payload = {"port": self.port, "expires_in_seconds": self.expires_in_seconds, **self._embedding()}
        return _post(control, name, "service-url", payload, ServiceURLRecord.from_dict)

    def login_call(self, control: ControlPlane, name: str) -> HttpCall[ServiceLoginURL]:
        """`POST /boxes/{name}/service-url` for access by login."""

        payload = {"port": self.port, "access": self.access, **self._embedding()}
        return _post(control, name, "service-url", payload, ServiceLoginURL.from_dict)

    def _embedding(self) -> dict[str, Any]:
        return {"embed_origins": list(self.embed_origins)} if self.embed_origins else {}


@attrs.frozen(kw_only=True)
class DownloadWish:
    """Which file to link to, and how it is to be served. None leaves it to the server."""

    path: str
    expires_in_seconds: int | None = None
    content_type: str | None = None
    content_disposition: Literal["attachment", "inline"] | None = None

    def call(self, control: ControlPlane, name: str) -> HttpCall[DownloadURL]:
        """`POST /boxes/{name}/download-url`.

        Raises:
            ValueError: The path is empty, or the link would have expired already.
        """
        if not self.path:
            raise ValueError("the path of a file is not empty")
        if self.expires_in_seconds is not None and self.expires_in_seconds < 1:
            raise ValueError(f"expires_in_seconds is at least 1, not {self.expires_in_seconds!r}")
        payload = {key: value for key, value in attrs.asdict(self).items() if value is not None}

        return _post(control, name, "download-url", payload, DownloadURL.from_dict)


class ServiceAttempts:
    """What follows each attempt of one request to a service.

    `replayable`: whether the body can be sent a second time.
    """

    def __init__(self, method: str, *, replayable: bool, max_retries: int) -> None:
        idempotent = method.upper() in IDEMPOTENT
        self._replayable = replayable
        self._answers = idempotent and replayable
        self._retry = HttpRetry(Resend.ALWAYS if self._answers else Resend.IF_REFUSED, max_retries)
        self._renewed = False

    def wants_new_token(self, status: int) -> bool:
        """Whether to ask again, once, with another token. The answer may be the program's own, too."""
        if status != 401 or self._renewed or not self._replayable:
            return False
        self._renewed = True
        return True

    def may_pass(self, status: int) -> bool:
        """Whether the answer may be another one soon, so that its body is worth a look; see `after_response`."""
        return self._answers and status in PASSING

    def after_response(self, response: HttpResponse, *, jitter: float) -> float | None:
        """Seconds until the next attempt, or None to take the answer.

        A server has waited for a port that refuses, so that is not tried again.
        """
        if not self.may_pass(response.status) or ErrorBody.of(response).error == "ConnectionRefused":
            return None
        return self._retry.after_response(response.status, response.headers, jitter=jitter)

    def after_failure(self, failure: Failure, *, jitter: float) -> float | None:
        """Seconds until the next attempt, or None to give up."""
        return self._retry.after_failure(failure, jitter=jitter)


def service_target(service_url: str, path: str) -> str:
    """The URL of a path of a service."""
    return f"{service_url.rstrip('/')}/{path.lstrip('/')}"


def websocket_target(service_url: str, path: str) -> str:
    """Path and query of a websocket's upgrade.

    Raises:
        ValueError: The path leads out of the service.
    """
    parts = urlsplit(service_target(service_url, path))
    if {unquote(segment) for segment in parts.path.split("/")} & {".", ".."}:
        raise ValueError(f"the path leads out of the service at {service_url}")
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _post(
    control: ControlPlane, name: str, what: str, payload: Mapping[str, Any], build: Callable[[Mapping[str, Any]], T]
) -> HttpCall[T]:
    """Sent again also when it may have been carried out: one token more does no harm."""

    def read(response: HttpResponse) -> T:
        if not response.success:
            raise resource_error(response, "sandbox")
        return build(json_object(response))

    url = f"{control.url}/boxes/{quote_name(name)}/{what}"
    return HttpCall(method="POST", url=url, read=read, timeout=control.timeout, **json_body(payload))
