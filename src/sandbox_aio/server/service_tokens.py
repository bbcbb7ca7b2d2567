"""Tokens for services and download links: made, checked, taken back. Wire protocol, sections 6.1, 6.2 and 6.5.

Each is a JWT, of one kind, for one thing; `typ` in its header says which kind. Those for services are signed with
Ed25519, so that anybody can check them with `jwks()`. Download links may last as long as their sandbox, so each
sandbox has a secret of its own for them, which goes with it.
"""

from __future__ import annotations

import base64
import functools
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import jwt

from .grants import GrantBook, PortGrant
from .signing_keys import KeyRing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "MAX_DOWNLOAD_TOKEN",
    "MAX_LIFETIME",
    "DownloadGrant",
    "Minted",
    "ServiceAuthority",
    "ServiceGrant",
    "TokenError",
    "TokenTooLongError",
]

MAX_LIFETIME: Final = 24 * 3600
"""Seconds that a service token is valid at most."""

MAX_TOKEN: Final = 4096
"""Characters of a service token or cookie. A longer one is not looked at."""

MAX_DOWNLOAD_TOKEN: Final = 8192
"""Characters of the token of a download link, which holds the file's path."""

ISSUER: Final = "sandbox-aio"
"""Who signs, unless `mint` is told the origin."""

SERVICE: Final = "sandbox-service+jwt"
COOKIE: Final = "sandbox-service-cookie+jwt"
DOWNLOAD: Final = "sandbox-download+jwt"


class TokenError(Exception):
    """A token that is worth nothing (any more)."""

    def __init__(self, kind: Literal["expired", "invalid", "revoked"], message: str = "") -> None:
        super().__init__(message or f"the token is {kind}")
        self.kind: Literal["expired", "invalid", "revoked"] = kind


class TokenTooLongError(ValueError):
    """What a token is to hold makes it longer than a server takes one back."""


@attrs.frozen(kw_only=True)
class Minted:
    """A new token and when it expires; None for never."""

    token: str = attrs.field(repr=False)
    expires_at: datetime | None


@attrs.frozen(kw_only=True)
class ServiceGrant:
    """What a token for a service allows."""

    sandbox_id: str
    port: int
    expires_at: datetime
    embed_origins: tuple[str, ...] = ()
    """Pages of these origins may show the service in a frame."""


@attrs.frozen(kw_only=True)
class DownloadGrant:
    """What a download link allows, and how the file is to be served. None: as the server sees fit."""

    sandbox_id: str
    path: str
    content_type: str | None = None
    content_disposition: str | None = None
    csp_sandbox_flags: tuple[str, ...] = ()
    expires_at: datetime | None = None


class ServiceAuthority:
    """Signs and verifies. What it knows is in `state_dir` and survives a restart; it is read when first needed.

    Every method may raise OSError, or ValueError if what is in `state_dir` was damaged.
    """

    def __init__(self, state_dir: Path, *, now: Callable[[], float] = time.time) -> None:
        self._state_dir = state_dir
        self._now = now

    @functools.cached_property
    def _keys(self) -> KeyRing:
        return KeyRing(self._state_dir / "keys" / "services.json", lifetime=MAX_LIFETIME, now=self._now)

    @functools.cached_property
    def _book(self) -> GrantBook:
        return GrantBook(self._state_dir / "grants")

    def load(self) -> None:
        """Read everything now, so that what is wrong with it is seen at the start."""
        _ = self._keys, self._book

    # --- services ---------------------------------------------------------------------------------------------------

    def mint(
        self,
        *,
        sandbox_id: str,
        port: int,
        audience: str,
        expires_in: float,
        embed_origins: Sequence[str] = (),
        issuer: str = ISSUER,
    ) -> Minted:
        """A token for a port. `audience` is the service's host; `expires_in` is in seconds, at most `MAX_LIFETIME`.

        Raises ValueError if too many ports of the sandbox have tokens, TokenTooLongError for too much to embed in.
        """
        if expires_in > MAX_LIFETIME:
            raise ValueError(f"a token is valid for at most {MAX_LIFETIME} s")
        now, expires_at = self._now(), self._time(expires_in)
        origins = tuple(embed_origins)
        claims = {"iss": issuer, "aud": audience, "sub": sandbox_id, "port": port, "iat": int(now)}
        claims |= {"exp": int(expires_at.timestamp()), "embed_origins": origins}
        # An honest token has at most 5 origins of at most 300 characters.
        if sum(map(len, [issuer, audience, *origins])) > MAX_TOKEN // 2:
            raise TokenTooLongError("the embed_origins are too long for a token")
        grant = self._book.grant(sandbox_id, port, now=_datetime(now), expires_at=expires_at, embed_origins=origins)
        return Minted(token=self._sign(SERVICE, {**claims, "grant": grant.id}), expires_at=expires_at)

    def verify(self, token: str, *, sandbox_id: str, port: int) -> ServiceGrant:
        """What a token from a header or a link allows. Raises TokenError."""
        return self._verify(SERVICE, token, sandbox_id, port)

    def mint_cookie(self, token: str, *, sandbox_id: str, port: int) -> Minted:
        """A token for a browser to keep, in exchange for one from a link. It ends with that. Raises TokenError."""
        grant = self.verify(token, sandbox_id=sandbox_id, port=port)
        claims = jwt.decode(token, options={"verify_signature": False})
        return Minted(token=self._sign(COOKIE, claims), expires_at=grant.expires_at)

    def verify_cookie(self, token: str, *, sandbox_id: str, port: int) -> ServiceGrant:
        """What a cookie allows. Raises TokenError."""
        return self._verify(COOKIE, token, sandbox_id, port)

    def grants(self, sandbox_id: str) -> list[tuple[int, PortGrant]]:
        """The ports of a sandbox that tokens are valid for."""
        return list(self._book.ports(sandbox_id, now=_datetime(self._now())))

    def revoke(self, sandbox_id: str, port: int) -> None:
        """End every token and cookie for a port. Tokens that are minted from now on are valid."""
        self._book.revoke(sandbox_id, port)

    def forget(self, sandbox_id: str) -> None:
        """End everything that was minted for a sandbox: it is gone."""
        self._book.forget(sandbox_id)

    def retain(self, sandbox_ids: Collection[str]) -> None:
        """End everything that was minted for other sandboxes than these: they went while nobody served."""
        self._book.retain(sandbox_ids)

    def rotate(self) -> None:
        """Sign with a new key. It happens by itself too, see `signing_keys.ROTATE_AFTER`."""
        self._keys.rotate()

    def jwks(self) -> dict[str, Any]:
        """The public keys, a JSON Web Key Set."""
        return {
            "keys": [
                {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "alg": "EdDSA",
                    "use": "sig",
                    "kid": known.id,
                    "x": base64.urlsafe_b64encode(known.key.public_bytes_raw()).rstrip(b"=").decode(),
                }
                for known in self._keys.public()
            ]
        }

    # --- download links ---------------------------------------------------------------------------------------------

    def mint_download(
        self,
        *,
        sandbox_id: str,
        path: str,
        expires_in: float | None = None,
        content_type: str | None = None,
        content_disposition: str | None = None,
        csp_sandbox_flags: Sequence[str] = (),
    ) -> Minted:
        """A token for one path of a sandbox, for `expires_in` seconds or as long as the sandbox is there.

        Raises TokenTooLongError.
        """
        claims: dict[str, Any] = {"sub": sandbox_id, "path": path, "iat": int(self._now())}
        expires_at = None
        if expires_in is not None:
            expires_at = self._time(expires_in)
            claims["exp"] = int(expires_at.timestamp())
        how = {
            "content_type": content_type,
            "content_disposition": content_disposition,
            "csp_sandbox_flags": tuple(csp_sandbox_flags),
        }
        claims |= {name: value for name, value in how.items() if value not in (None, ())}
        key = self._book.download_key(sandbox_id)
        token = jwt.encode(claims, key, algorithm="HS256", headers={"typ": DOWNLOAD, "kid": sandbox_id})
        if len(token) > MAX_DOWNLOAD_TOKEN:
            raise TokenTooLongError("the path is too long for a link")
        return Minted(token=token, expires_at=expires_at)

    def verify_download(self, token: str) -> DownloadGrant:
        """What a download link allows. Raises TokenError."""
        header = _header(token, DOWNLOAD, MAX_DOWNLOAD_TOKEN)
        key = self._book.find_download_key(header["kid"])
        if key is None:
            raise TokenError("invalid")
        claims = _claims(token, key, "HS256", ["sub", "path"])
        if claims["sub"] != header["kid"]:
            raise TokenError("invalid")
        expires_at = self._check_expiry(claims["exp"]) if "exp" in claims else None
        return DownloadGrant(
            sandbox_id=claims["sub"],
            path=claims["path"],
            content_type=claims.get("content_type"),
            content_disposition=claims.get("content_disposition"),
            csp_sandbox_flags=tuple(claims.get("csp_sandbox_flags", ())),
            expires_at=expires_at,
        )

    # --- tokens -----------------------------------------------------------------------------------------------------

    def _sign(self, kind: str, claims: Mapping[str, Any]) -> str:
        key = self._keys.signing()
        return jwt.encode(dict(claims), key.key, algorithm="EdDSA", headers={"typ": kind, "kid": key.id})

    def _verify(self, kind: str, token: str, sandbox_id: str, port: int) -> ServiceGrant:
        header = _header(token, kind, MAX_TOKEN)
        key = self._keys.find(header["kid"])
        if key is None:
            raise TokenError("invalid")
        claims = _claims(token, key, "EdDSA", ["sub", "port", "exp", "grant", "embed_origins"])
        if (claims["sub"], claims["port"]) != (sandbox_id, port):
            raise TokenError("invalid", "the token is for another service")
        expires_at = self._check_expiry(claims["exp"])
        grant = self._book.find(sandbox_id, port)
        if grant is None or grant.id != claims["grant"]:
            raise TokenError("revoked")
        return ServiceGrant(
            sandbox_id=sandbox_id, port=port, expires_at=expires_at, embed_origins=tuple(claims["embed_origins"])
        )

    def _check_expiry(self, expires: int) -> datetime:
        if expires <= self._now():
            raise TokenError("expired")
        return _datetime(expires)

    def _time(self, expires_in: float) -> datetime:
        """A token holds whole seconds; the last one begun counts, so that one for a second is worth using."""
        return _datetime(math.ceil(self._now() + expires_in))


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _header(token: str, kind: str, limit: int) -> dict[str, Any]:
    """A token's header, of which nothing is proven yet but that it names one key. Raises TokenError."""
    if len(token) > limit:
        raise TokenError("invalid")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
        raise TokenError("invalid") from error
    if header.get("typ") != kind or not isinstance(header.get("kid"), str):
        raise TokenError("invalid")
    return header


def _claims(token: str, key: Any, algorithm: str, required: list[str]) -> dict[str, Any]:
    """What we signed. Times and audience are checked by whoever asks. Raises TokenError."""
    options: Any = {
        "require": required,
        "verify_exp": False,
        "verify_iat": False,
        "verify_aud": False,
    }
    try:
        claims: dict[str, Any] = jwt.decode(token, key, algorithms=[algorithm], options=options)
    except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
        raise TokenError("invalid") from error
    return claims
