"""The control plane of services and download links. Wire protocol, sections 6.1 and 6.5."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs

from . import views
from .creation import check_fields, structure_body
from .errors import ApiError, Detail, InvalidFieldsError
from .sandbox import Sandbox, Status
from .sandboxes import SandboxRegistry
from .service_tokens import MAX_LIFETIME, ServiceAuthority, TokenTooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


__all__ = ["ServiceLinks"]

DEFAULT_LIFETIME: Final = 600
"""Seconds that a service token is valid if nobody says."""

MAX_EMBED_ORIGINS: Final = 5
MAX_ORIGIN: Final = 300
"""Characters of an origin: a host name has at most 253."""

MAX_PATH: Final = 4096
"""Bytes of a path to link to."""

MAX_CONTENT_TYPE: Final = 255

MAX_LINK_LIFETIME: Final = 10 * 365 * 24 * 3600
"""Seconds that a download link lasts at most, if it ends before its sandbox at all."""

MAX_SANDBOX_FLAGS: Final = 16

NAME_AND_PORT: Final = r"(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::[1-9]\d{0,4})?"
SECURE_ORIGIN: Final = re.compile(f"https://{NAME_AND_PORT}", re.IGNORECASE)
LOCAL_ORIGIN: Final = re.compile(
    r"http://(?:(?:[a-z0-9-]+\.)*localhost|127\.0\.0\.1|\[::1\])(?::[1-9]\d{0,4})?", re.IGNORECASE
)
CONTENT_TYPE: Final = re.compile(r"[\w.+-]+/[\w.+-]+(?: ?; ?[\w-]+=(?:[\w.+-]+|\"[\w.+ -]*\"))*", re.ASCII)
SANDBOX_FLAG: Final = re.compile(r"allow-[a-z-]{1,64}")

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class ServiceRequest:
    """The body of `POST /boxes/{name}/service-url`; None means absent."""

    port: int
    expires_in_seconds: int | None = None
    access: str | None = None
    embed_origins: list[str] | None = None


@attrs.frozen(kw_only=True)
class LinkRequest:
    """The body of `POST /boxes/{name}/download-url`; None means absent."""

    path: str
    expires_in_seconds: int | None = None
    content_type: str | None = None
    content_disposition: str | None = None
    csp_sandbox: bool | None = None
    csp_sandbox_flags: list[str] | None = None
    csp_source_bundles: list[str] | None = None


@attrs.frozen(kw_only=True)
class ServiceLinks:
    """Makes, lists and takes back what leads to services and files. `domain` is what the hosts of services end in.

    `origin` is how the client reaches this server. Every method raises ApiError 404 for an unknown sandbox.
    """

    registry: SandboxRegistry
    authority: ServiceAuthority
    domain: str

    def make_service_url(self, reference: str, body: bytes, *, origin: str) -> Json:
        """Raises ApiError 422 for what is wrong with the body, and 501 for access by login."""
        sandbox = self._find(reference)
        _, request = structure_body(body, ServiceRequest)
        check_fields(request, _SERVICE_CHECKS)
        if request.access not in (None, "off"):
            message = f"access {request.access!r} needs a login, and this server knows no people; leave out access"
            raise ApiError(501, "NotImplemented", message)
        host = self._host(sandbox, request.port, origin)
        own = f"{urlsplit(origin).scheme}://{host}"
        origins = tuple(dict.fromkeys(one.lower() for one in request.embed_origins or ()))
        try:
            minted = self.authority.mint(
                sandbox_id=sandbox.id,
                port=request.port,
                audience=host,
                expires_in=DEFAULT_LIFETIME if request.expires_in_seconds is None else request.expires_in_seconds,
                embed_origins=origins,
                issuer=origin,
            )
        except ValueError as error:
            field = "embed_origins" if isinstance(error, TokenTooLongError) else "port"
            raise InvalidFieldsError([Detail(field, f"{field}: {error}")]) from error
        assert minted.expires_at is not None
        answer: Json = {
            "browser_url": f"{own}/_svc/auth?token={minted.token}",
            "service_url": f"{origin}/svc/{sandbox.id}/{request.port}/",
            "token": minted.token,
            "expires_at": views.timestamp(minted.expires_at),
        }
        if origins:
            answer |= {"embed_url": f"{own}/_svc/embed#token={minted.token}", "embed_origins": list(origins)}
        return answer

    def list_service_urls(self, reference: str) -> list[Json]:
        """The ports that tokens are valid for."""
        return [
            {
                "port": port,
                "access": "token",
                "created_at": views.timestamp(grant.created_at),
                "expires_at": views.timestamp(grant.expires_at),
                "embed_origins": list(grant.embed_origins),
            }
            for port, grant in self.authority.grants(self.registry.get(reference).id)
        ]

    def revoke(self, reference: str, port: str | None) -> None:
        """End all access to a port, at once. Nothing happens if there was none."""
        sandbox = self.registry.get(reference)
        if port is None or not re.fullmatch(r"[1-9]\d{0,4}", port) or int(port) > 0xFFFF:
            raise ApiError(400, "InvalidRequest", "say which port: ?port=8000, of 1 to 65535")
        self.authority.revoke(sandbox.id, int(port))

    def make_download_url(self, reference: str, body: bytes, *, origin: str) -> Json:
        """A link to one path, whether there is a file or not. Raises ApiError 422 for what is wrong with the body."""
        sandbox = self._find(reference)
        _, request = structure_body(body, LinkRequest)
        check_fields(request, _LINK_CHECKS)
        try:
            minted = self.authority.mint_download(
                sandbox_id=sandbox.id,
                path=request.path,
                expires_in=request.expires_in_seconds,
                content_type=request.content_type,
                content_disposition=request.content_disposition,
                csp_sandbox_flags=request.csp_sandbox_flags or (),
            )
        except TokenTooLongError as error:
            raise InvalidFieldsError([Detail("path", f"path: {error}")]) from error
        return {
            "download_url": f"{origin}/dl/{minted.token}",
            "token": minted.token,
            "expires_at": views.timestamp(minted.expires_at) if minted.expires_at else None,
        }

    def _find(self, reference: str) -> Sandbox:
        """A sandbox that something can be minted for: what is being deleted has lost all that was."""
        sandbox = self.registry.get(reference)
        if sandbox.status is Status.DELETING:
            raise ApiError(404, "SandboxNotFound", f"sandbox {sandbox.name!r} is being deleted")
        return sandbox

    def _host(self, sandbox: Sandbox, port: int, origin: str) -> str:
        """The service's own host, with the port by which the client reaches us unless the domain has one."""
        reached = urlsplit(origin).port
        domain = self.domain if ":" in self.domain or reached is None else f"{self.domain}:{reached}"
        return f"{sandbox.id}--{port}.{domain}"


# Values: each check says what is wrong with its field, or None.


def _lifetime(longest: int) -> Callable[[ServiceRequest | LinkRequest], str | None]:
    def check(request: ServiceRequest | LinkRequest) -> str | None:
        seconds = request.expires_in_seconds
        return None if seconds is None or 1 <= seconds <= longest else f"must be 1 to {longest:,} seconds"

    return check


def _embed_origins(request: ServiceRequest) -> str | None:
    origins = request.embed_origins or []
    if len(origins) > MAX_EMBED_ORIGINS:
        return f"has more than {MAX_EMBED_ORIGINS} entries"
    for origin in origins:
        if len(origin) > MAX_ORIGIN or not (SECURE_ORIGIN.fullmatch(origin) or LOCAL_ORIGIN.fullmatch(origin)):
            return f"{origin[:MAX_ORIGIN]!r} is not an origin such as https://example.com; http is for localhost alone"
    return None


def _path(request: LinkRequest) -> str | None:
    try:
        size = len(request.path.encode())
    except UnicodeEncodeError:
        return "must be Unicode text"
    if not 1 <= size <= MAX_PATH or "\0" in request.path:
        return f"must have 1 to {MAX_PATH:,} bytes, and no NUL"
    return None


def _content_type(request: LinkRequest) -> str | None:
    given = request.content_type
    if given is None or (len(given) <= MAX_CONTENT_TYPE and CONTENT_TYPE.fullmatch(given)):
        return None
    return "must be a media type, such as text/html; charset=utf-8"


def _sandbox_flags(request: LinkRequest) -> str | None:
    flags = request.csp_sandbox_flags or []
    if len(flags) > MAX_SANDBOX_FLAGS or not all(SANDBOX_FLAG.fullmatch(flag) for flag in flags):
        return f"must be at most {MAX_SANDBOX_FLAGS} flags such as allow-scripts"
    return "allow-same-origin would let a file act as this server" if "allow-same-origin" in flags else None


def _member(field: str, allowed: Sequence[object], otherwise: str) -> Callable[[Any], str | None]:
    return lambda request: None if getattr(request, field) in allowed else otherwise


_SERVICE_CHECKS: Final[Sequence[tuple[str, Callable[[ServiceRequest], str | None]]]] = (
    ("port", lambda request: None if 1 <= request.port <= 0xFFFF else "must be 1 to 65535"),
    ("expires_in_seconds", _lifetime(MAX_LIFETIME)),
    ("access", _member("access", (None, "off", "restricted", "workspace"), "must be restricted, workspace or off")),
    ("embed_origins", _embed_origins),
)

_LINK_CHECKS: Final[Sequence[tuple[str, Callable[[LinkRequest], str | None]]]] = (
    ("path", _path),
    ("expires_in_seconds", _lifetime(MAX_LINK_LIFETIME)),
    ("content_type", _content_type),
    (
        "content_disposition",
        _member("content_disposition", (None, "attachment", "inline"), "must be attachment or inline"),
    ),
    ("csp_sandbox", _member("csp_sandbox", (None, True), "this server serves every file in a sandbox of the browser")),
    ("csp_sandbox_flags", _sandbox_flags),
    ("csp_source_bundles", _member("csp_source_bundles", (None, []), "this server has no bundles of sources")),
)
