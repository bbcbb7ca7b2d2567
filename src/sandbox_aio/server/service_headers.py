"""What crosses between a client and a program in a sandbox, and how it is changed. Wire protocol, section 6.2.

Nothing here trusts either side. Names are compared with `_` taken for `-`, as CGI and WSGI take them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from .exchange import Head, Headers

__all__ = ["TOKEN_HEADER", "Caller", "ServiceForm", "is_own_cookie", "own_cookies"]

TOKEN_HEADER: Final = b"x-langsmith-sandbox-service-token"

COOKIE_PREFIXES: Final = (b"sandbox_aio_", b"__host-sandbox_aio_", b"__secure-sandbox_aio_")
"""Cookies with these names are the server's: no program sees them or sets them."""

FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))

HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"upgrade",
    )
)

NOT_FROM_CLIENT: Final = frozenset(
    (
        b"client-ip",
        b"expect",
        b"forwarded",
        b"host",
        b"proxy",  # becomes HTTP_PROXY in CGI
        b"true-client-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-host",
        b"x-http-host-override",
        b"x-real-ip",
        b"x-rewrite-url",
        b"x-sandbox-secret",
    )
)
"""What a program would believe of us, and what we say ourselves."""

NOT_FROM_CLIENT_PREFIXES: Final = (b"x-forwarded-", b"x-langsmith-user-", b"x-original-", TOKEN_HEADER)

NOT_FROM_PROGRAM: Final = frozenset((b"alt-svc", b"clear-site-data"))
"""What reaches beyond the program's own host: `Clear-Site-Data` empties its neighbours."""

NOT_IN_PATH_FORM: Final = frozenset(
    (
        b"nel",
        b"public-key-pins",
        b"report-to",
        b"reporting-endpoints",
        b"service-worker-allowed",
        b"set-cookie",
        b"strict-transport-security",
    )
)
"""What would hold for the control plane's origin."""

NOT_IN_TRAILERS: Final = frozenset(
    (
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-security-policy",
        b"content-type",
        b"cookie",
        b"location",
        b"set-cookie",
        b"trailer",
        b"www-authenticate",
    )
)

OWN_ADDRESS: Final = re.compile(
    rb"(https?)://(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]|0\.0\.0\.0)(?::(\d{1,5}))?(?=[/?#]|$)", re.IGNORECASE
)
"""The start of a URL by which a program in a sandbox knows itself."""

EMBED_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:*]+")


@attrs.frozen(kw_only=True)
class Caller:
    """Who asks, and what a program is told of it."""

    address: str
    """The peer's IP address."""
    scheme: str
    host: str
    """The public name and port."""


@attrs.frozen(kw_only=True)
class ServiceForm:
    """How the headers of one exchange with one service cross; a `relay.Policy`."""

    port: int
    caller: Caller
    prefix: bytes = b""
    """What precedes the program's paths in the path form; empty in the host form."""
    embed_origins: Sequence[str] = ()
    is_own_key: Callable[[bytes], bool]
    """Whether a credential is one of the server's, which no program sees."""

    @property
    def peer(self) -> str:
        return f"the program on port {self.port}"

    @property
    def transparent(self) -> bool:
        return True

    def request(self, head: Head, *, websocket: bool) -> list[tuple[bytes, bytes]]:
        """The headers of the request to the program.

        In the host form it sees the public host; in the path form `localhost` and its port, to which it would have
        answered without us.
        """
        fields = [(b"host", b"localhost:%d" % self.port if self.prefix else self.caller.host.encode())]
        options = _connection_options(head.headers)
        trailers = b"te" in options and any(b"trailers" in value.lower() for value in head.values(b"te"))
        if websocket:
            fields += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
        elif trailers:
            fields += [(b"connection", b"close, TE"), (b"te", b"trailers")]
        else:
            fields.append((b"connection", b"close"))
        if not websocket and head.version != b"1.0" and b"100-continue" in (head.header(b"expect") or b"").lower():
            fields.append((b"expect", b"100-continue"))
        for name, value in head.headers:
            if name in FRAMING:
                fields.append((name, value))
            elif not _withheld(name, options) and not self._is_own_credential(name, value):
                if name != b"cookie":
                    fields.append((name, value))
                elif rest := b"; ".join(crumb for crumb in _crumbs(value) if not is_own_cookie(crumb)):
                    fields.append((name, rest))
        return fields + self._forwarded()

    def request_trailers(self, trailers: Headers) -> Headers:
        return [(name, value) for name, value in _trailers(trailers) if not _withheld(name, frozenset())]

    def answer(self, status: int, headers: Headers) -> Headers:
        """The headers of the answer to the client. Policies of the program stay, and ours are added beside them."""
        fields = list(self._passed(status, headers))
        if status == 101:
            return fields
        if self.prefix:
            return [*fields, (b"content-security-policy", b"sandbox"), (b"x-content-type-options", b"nosniff")]
        fields.append((b"content-security-policy", self.frame_ancestors()))
        if all(name != b"cross-origin-resource-policy" for name, _ in fields):
            fields.append((b"cross-origin-resource-policy", b"same-origin"))
        return fields

    def interim(self, headers: Headers) -> Headers:
        return [(name, value) for name, value in headers if name == b"link"]

    def answer_trailers(self, trailers: Headers) -> Headers:
        return list(_trailers(trailers))

    def frame_ancestors(self) -> bytes:
        """Who may show this in a frame: itself, and the origins that the link was made for."""
        origins = [origin for origin in self.embed_origins if EMBED_ORIGIN.fullmatch(origin)]
        return " ".join(["frame-ancestors 'self'", *origins]).encode()

    def _passed(self, status: int, headers: Headers) -> Iterator[tuple[bytes, bytes]]:
        options = _connection_options(headers) - FRAMING
        for name, value in headers:
            if name in HOP_BY_HOP or name in options or (self.prefix and name in NOT_IN_PATH_FORM):
                continue
            if name == b"x-frame-options" and not self.prefix:
                if ancestors := {b"deny": b"'none'", b"sameorigin": b"'self'"}.get(value.lower()):
                    yield b"content-security-policy", b"frame-ancestors " + ancestors
            elif name in NOT_FROM_PROGRAM or (name in FRAMING and (name != b"content-length" or status in (101, 204))):
                continue
            elif name == b"set-cookie":
                if (cookie := _host_only_cookie(value)) is not None:
                    yield name, cookie
            elif name in (b"location", b"content-location"):
                yield name, self._public_url(value)
            else:
                yield name, value

    def _public_url(self, url: bytes) -> bytes:
        """Where a client finds what the program calls `url`."""
        match = OWN_ADDRESS.match(url)
        if match is not None:
            port = int(match[2]) if match[2] else 443 if match[1].lower() == b"https" else 80
            if port != self.port:
                return url
            rest = url[match.end() :]
            rest = rest if rest.startswith(b"/") else b"/" + rest
            # Never only the rest: `//elsewhere` would be another host.
            return (self.prefix or f"{self.caller.scheme}://{self.caller.host}".encode()) + rest
        if self.prefix and url.startswith(b"/") and url[1:2] not in (b"/", b"\\"):
            return url if url.startswith(self.prefix + b"/") else self.prefix + url
        return url

    def _is_own_credential(self, name: bytes, value: bytes) -> bool:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return scheme.lower() == b"bearer" and self.is_own_key(token.strip())
        return name == b"x-api-key" and self.is_own_key(value)

    def _forwarded(self) -> list[tuple[bytes, bytes]]:
        caller = self.caller
        node = f'"[{caller.address}]"' if ":" in caller.address else caller.address
        fields = {
            "x-forwarded-for": caller.address,
            "x-forwarded-proto": caller.scheme,
            "x-forwarded-host": caller.host,
            "forwarded": f'for={node};host="{caller.host}";proto={caller.scheme}',
        }
        if self.prefix:
            fields["x-forwarded-prefix"] = self.prefix.decode()
        return [(name.encode(), value.encode()) for name, value in fields.items()]


def own_cookies(head: Head, name: bytes) -> list[bytes]:
    """The values of the server's own cookie in a request. More than one may have been set, by a page of a neighbour."""
    found = []
    for value in head.values(b"cookie"):
        for crumb in _crumbs(value):
            key, _, text = crumb.partition(b"=")
            if key.strip() == name:
                found.append(text.strip())
    return found


def is_own_cookie(crumb: bytes) -> bool:
    """Whether `name=value`, also with the name left out, is read as a cookie of the server by anybody."""
    return crumb.lstrip(b" \t=").lower().startswith(COOKIE_PREFIXES)


def _crumbs(value: bytes) -> list[bytes]:
    return [crumb for crumb in (piece.strip() for piece in value.split(b";")) if crumb]


def _host_only_cookie(value: bytes) -> bytes | None:
    """A `Set-Cookie` that holds for its own host alone, or None."""
    cookie, *attributes = value.split(b";")
    if is_own_cookie(cookie):
        return None
    kept = [item for item in attributes if item.partition(b"=")[0].strip().lower() != b"domain"]
    return b";".join([cookie, *kept])


def _connection_options(headers: Headers) -> frozenset[bytes]:
    """The headers that are for the next hop only."""
    values = (value for name, value in headers if name == b"connection")
    return frozenset(option.strip().lower() for value in values for option in value.split(b","))


def _withheld(name: bytes, options: frozenset[bytes]) -> bool:
    """Whether a client's header does not reach the program."""
    plain = name.replace(b"_", b"-")
    return (
        plain in HOP_BY_HOP
        or plain in FRAMING
        or plain in NOT_FROM_CLIENT
        or plain.startswith(NOT_FROM_CLIENT_PREFIXES)
        or name in options
    )


def _trailers(trailers: Headers) -> Iterator[tuple[bytes, bytes]]:
    for name, value in trailers:
        if name not in NOT_IN_TRAILERS and name not in NOT_FROM_PROGRAM and name not in HOP_BY_HOP | FRAMING:
            yield name, value
