"""Who may use a service: a token in a header, or a cookie that one was exchanged for. Wire protocol, section 6.2.

A page of one sandbox must never act with the cookie of another. Each has a host of its own, and with it cookies and
storage; that is not enough where all are of one site, so what a browser says about a request counts too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote

import attrs

from .errors import ApiError
from .limits import BODY_TIMEOUT
from .service_headers import TOKEN_HEADER, own_cookies
from .service_pages import EMBED_PAGE, EMBED_POLICY
from .service_tokens import ServiceAuthority, TokenError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .exchange import Exchange, Head
    from .hosts import ServiceTarget
    from .service_tokens import ServiceGrant

__all__ = ["OWN_PATHS", "ServiceAccess", "same_origin_path"]

OWN_PATHS: Final = b"/_svc/"
"""What is below is answered by the server, on the host of every service."""

MAX_COOKIES: Final = 4
"""Cookies of our name that are looked at in one request."""

MAX_REDIRECT: Final = 2048
"""Characters of the path to go to."""

MAX_AUTH_BODY: Final = 16 * 1024
"""Bytes of the body of `POST /_svc/auth`."""

SAFE_METHODS: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))

PRIVATE: Final = ((b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"))


@attrs.frozen
class ServiceAccess:
    """Checks requests for services and exchanges tokens for cookies. `domain` is what the hosts end in; `exists` knows
    a sandbox by its id.
    """

    authority: ServiceAuthority
    domain: str
    exists: Callable[[str], bool]

    def by_header(self, head: Head, target: ServiceTarget) -> ServiceGrant | None:
        """The grant of the token in the request's header; None without that header. Raises ApiError 401 or 403."""
        tokens = head.values(TOKEN_HEADER)
        if len(tokens) > 1:
            raise ApiError(400, "InvalidRequest", f"more than one {TOKEN_HEADER.decode()}")
        if not tokens:
            return None
        with self._refusing(target):
            return self.authority.verify(tokens[0].decode("latin-1"), sandbox_id=target.sandbox_id, port=target.port)

    def by_cookie(self, head: Head, target: ServiceTarget, *, scheme: str) -> ServiceGrant:
        """The grant of the request's cookie. Raises ApiError 401 or 403, the latter also for what a page of another
        origin asks."""
        problem = ApiError(401, "Unauthorized", "this service needs its link, or a token in a header")
        for value in own_cookies(head, _cookie_name(scheme))[:MAX_COOKIES]:
            token = value.decode("latin-1")
            try:
                with self._refusing(target):
                    grant = self.authority.verify_cookie(token, sandbox_id=target.sandbox_id, port=target.port)
            except ApiError as error:
                problem = error
            else:
                _check_origin(head, head.host.origin(scheme))
                return grant
        raise problem

    async def serve_own(self, exchange: Exchange, target: ServiceTarget, *, scheme: str) -> None:
        """Answer below `OWN_PATHS`: `/_svc/auth`, `/_svc/embed`."""
        head = exchange.head
        match head.method, head.path:
            case b"GET", b"/_svc/auth":
                members = dict(parse_qsl(head.query.decode("latin-1"), keep_blank_values=True))
                redirect = same_origin_path(members.get("redirect", "/"))
                cookie = self._cookie(members.get("token", ""), target, scheme=scheme)
                headers = [(b"location", redirect.encode()), (b"content-length", b"0"), (b"set-cookie", cookie)]
                await exchange.respond(303, [*headers, *PRIVATE])
            case b"POST", b"/_svc/auth":
                origin = head.header(b"origin")
                if origin is not None and origin.decode("latin-1").lower() != head.host.origin(scheme):
                    raise ApiError(403, "Forbidden", "a page of another origin asks")
                try:
                    async with asyncio.timeout(BODY_TIMEOUT):
                        token, redirect = await _receive_credentials(exchange)
                except TimeoutError:
                    message = f"the request's body took longer than {BODY_TIMEOUT:g} s"
                    raise ApiError(408, "RequestTimeout", message) from None
                cookie = self._cookie(token, target, scheme=scheme)
                body = json.dumps({"redirect": redirect}).encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
                await exchange.respond(200, [*headers, (b"set-cookie", cookie), *PRIVATE], body)
            case b"GET" | b"HEAD", b"/_svc/embed":
                headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", b"%d" % len(EMBED_PAGE))]
                policy = [(b"content-security-policy", EMBED_POLICY), (b"x-content-type-options", b"nosniff")]
                await exchange.respond(200, [*headers, *policy, *PRIVATE], EMBED_PAGE)
            case _, b"/_svc/auth" | b"/_svc/embed":
                raise ApiError(405, "MethodNotAllowed", "not with this method")
            case _:
                raise ApiError(404, "NotFound", "what is below /_svc/ belongs to the server, and this is not there")

    def _cookie(self, token: str, target: ServiceTarget, *, scheme: str) -> bytes:
        """A `Set-Cookie` in exchange for a token from a link. Raises ApiError 401 or 403.

        A frame of another site gets only a cookie with `SameSite=None`, which must be `Secure`. Over plain http
        browsers take such a one for localhost alone.
        """
        with self._refusing(target):
            grant = self.authority.verify(token, sandbox_id=target.sandbox_id, port=target.port)
            cookie = self.authority.mint_cookie(token, sandbox_id=target.sandbox_id, port=target.port)
        age = max(0, math.floor(grant.expires_at.timestamp() - time.time()))
        secure = scheme == "https" or self.domain == "localhost"
        attributes = f"; Path=/; Max-Age={age}; HttpOnly"
        if grant.embed_origins and secure:
            attributes += "; SameSite=None; Secure; Partitioned"
        else:
            attributes += "; SameSite=Lax" + ("; Secure" if scheme == "https" else "")
        return _cookie_name(scheme) + f"={cookie.token}{attributes}".encode()

    @contextlib.contextmanager
    def _refusing(self, target: ServiceTarget) -> Iterator[None]:
        """Make a TokenError an answer. Whoever had a token learns that the sandbox is gone, and nobody else."""
        try:
            yield
        except TokenError as error:
            if error.kind == "expired":
                raise ApiError(401, "LinkExpired", "the token has expired") from error
            if error.kind == "revoked" and not self.exists(target.sandbox_id):
                raise ApiError(404, "SandboxNotFound", "the sandbox was deleted") from error
            if error.kind == "revoked":
                raise ApiError(403, "AccessRevoked", "the token was revoked") from error
            raise ApiError(401, "Unauthorized", "the token is not one for this service") from error


def same_origin_path(redirect: str) -> str:
    """A path to redirect to, escaped. Raises ApiError 400 for whatever a browser could take for another origin."""
    strange = any(character in "\\" or ord(character) < 0x20 or ord(character) == 0x7F for character in redirect)
    if not redirect.startswith("/") or redirect.startswith("//") or strange or len(redirect) > MAX_REDIRECT:
        raise ApiError(400, "InvalidRequest", "redirect must be a path of this host, such as /page?x=1")
    return quote(redirect, safe="/?#[]@!$&'()*+,;=:~%-._")


def _cookie_name(scheme: str) -> bytes:
    return b"__Host-sandbox_aio_service" if scheme == "https" else b"sandbox_aio_service"


def _check_origin(head: Head, own: str) -> None:
    """Raises ApiError 403 for a request with a cookie that a page of another origin has made.

    Navigations are let through: what they lead to is shown in its own origin, and says itself who may frame it.
    """
    origin = head.header(b"origin")
    changes = head.method not in SAFE_METHODS or head.wants_websocket
    if origin is not None and origin.decode("latin-1").lower() != own:
        raise ApiError(403, "Forbidden", "a page of another origin asks")
    site = head.header(b"sec-fetch-site")
    if site not in (None, b"same-origin", b"none") and (changes or head.header(b"sec-fetch-mode") != b"navigate"):
        raise ApiError(403, "Forbidden", "a page of another origin asks")


async def _receive_credentials(exchange: Exchange) -> tuple[str, str]:
    body = b""
    while (data := await exchange.receive_body()) is not None:
        body += data
        if len(body) > MAX_AUTH_BODY:
            raise ApiError(413, "InvalidRequest", f"the body has at most {MAX_AUTH_BODY:,} bytes")
    try:
        members = json.loads(body)
        token, redirect = members["token"], members.get("redirect", "/")
    except (ValueError, LookupError, TypeError, AttributeError):
        token = redirect = None
    if not isinstance(token, str) or not isinstance(redirect, str) or not token.isascii():
        raise ApiError(400, "InvalidRequest", "the body is JSON with a token, and a path to redirect to")
    return token, same_origin_path(redirect)
