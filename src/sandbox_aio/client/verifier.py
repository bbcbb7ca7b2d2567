"""Verifies what the service signs: who has logged in, and that a callback is the service's own."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
import time
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio

from ..drivers.key_fetch import afetch_keys, fetch_keys
from ..errors import RemoteProtocolError, SandboxTokenVerificationError
from ..models import SandboxCallback, SandboxUser
from ..protocol.key_set import KeyCache, key_set_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..models import AudienceMatcher

__all__ = ["SandboxTokenVerifier"]

USER_ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
CALLBACK_ALGORITHMS: Final = ("EdDSA",)
CALLBACK_SUBJECT: Final = "langsmith-sandbox-callback"

LEEWAY: Final = 30.0
"""Seconds by which clocks may differ."""

MAX_TOKEN: Final = 16 * 1024
"""Characters of a token. A longer one is not looked at."""


class SandboxTokenVerifier:
    """Verifies the tokens with which the service tells a program in a sandbox, or a callback, who it is dealing with.

    It fetches the service's public keys when it needs them and keeps them for 5 minutes. Threads may share one; the
    tasks of one event loop, on asyncio or trio, may too. Whatever is wrong with a token, and keys that are not to be
    had, are a `SandboxTokenVerificationError`.

    ::

        verifier = SandboxTokenVerifier()
        user = await verifier.averify_user_token(request.headers[USER_TOKEN_HEADER], audience=request.headers["host"])
    """

    def __init__(
        self,
        *,
        api_url: str | None = None,
        jwks_url: str | None = None,
        timeout: float = 10.0,
        allow_insecure_jwks: bool = False,
    ) -> None:
        """Nothing is fetched yet.

        Args:
            api_url: A URL of the service, of which the origin counts. By default that of `LANGSMITH_ENDPOINT`.
            jwks_url: Where the keys are, if not at `/.well-known/jwks.json` of that.
            timeout: Seconds for fetching them.
            allow_insecure_jwks: Fetch them by plain http also from elsewhere than this machine.

        Raises:
            ValueError: The URL is none, or not https.
            ImportError: The extra `auth` is not installed.
        """
        try:
            self._jwt: Any = import_module("jwt")
            import_module("cryptography")
        except ImportError as error:
            raise ImportError("SandboxTokenVerifier needs PyJWT: pip install 'sandbox-aio[auth]'") from error
        self._url = key_set_url(
            api_url=api_url, jwks_url=jwks_url, allow_insecure=allow_insecure_jwks, environ=os.environ
        )
        self._timeout = timeout
        self._cache = KeyCache()
        self._lock = threading.Lock()
        self._alock = anyio.Lock()

    def __repr__(self) -> str:
        return f"SandboxTokenVerifier(jwks_url={self._url!r})"

    def verify_user_token(self, token: str, *, audience: str, issuer: str | None = None) -> SandboxUser:
        """Find out who has logged in to a service.

        Args:
            token: The header `USER_TOKEN_HEADER` of a request to the service.
            audience: The service's own host, with its port if it has one; or a URL of it.
            issuer: Who must have signed; None for whoever has the key.
        """
        key = self._key(token, USER_ALGORITHMS)
        return self._user(token, key, audience, issuer)

    async def averify_user_token(self, token: str, *, audience: str, issuer: str | None = None) -> SandboxUser:
        """Do what `verify_user_token` does without blocking the event loop."""
        key = await self._akey(token, USER_ALGORITHMS)
        return self._user(token, key, audience, issuer)

    def verify_callback(
        self,
        *,
        body: bytes,
        signature: str,
        aud: str | AudienceMatcher | None = None,
        issuer: str | None = None,
    ) -> SandboxCallback:
        """Find out what the service asks in a callback, and that it is the service that asks.

        Args:
            body: The body of the request, as it came.
            signature: The header `CALLBACK_SIGNATURE_HEADER`.
            aud: The callback's URL exactly as it was configured, or what tells whether one is right. None: any.
            issuer: Who must have signed; None for whoever has the key.
        """
        key = self._key(signature, CALLBACK_ALGORITHMS)
        return self._callback(signature, key, body, aud, issuer)

    async def averify_callback(
        self,
        *,
        body: bytes,
        signature: str,
        aud: str | AudienceMatcher | None = None,
        issuer: str | None = None,
    ) -> SandboxCallback:
        """Do what `verify_callback` does without blocking the event loop."""
        key = await self._akey(signature, CALLBACK_ALGORITHMS)
        return self._callback(signature, key, body, aud, issuer)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _key(self, token: str, algorithms: Sequence[str]) -> tuple[Any, str]:
        kid, algorithm = self._header(token, algorithms)
        with self._lock:
            if self._cache.wants_fetch(kid, time.monotonic()):
                self._cache.fetched(fetch_keys(self._url, self._timeout), time.monotonic())
        return self._usable(kid, algorithm)

    async def _akey(self, token: str, algorithms: Sequence[str]) -> tuple[Any, str]:
        kid, algorithm = self._header(token, algorithms)
        async with self._alock:
            if self._cache.wants_fetch(kid, time.monotonic()):
                self._cache.fetched(await afetch_keys(self._url, self._timeout), time.monotonic())
        return self._usable(kid, algorithm)

    def _header(self, token: str, algorithms: Sequence[str]) -> tuple[str, str]:
        """Which key and which algorithm a token names; nothing is proven yet."""
        if not token or len(token) > MAX_TOKEN:
            raise SandboxTokenVerificationError("the token is missing or too long")
        header = self._trying(lambda: self._jwt.get_unverified_header(token))
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(kid, str) or not kid:
            raise SandboxTokenVerificationError("the token does not say which key signed it")
        if algorithm not in algorithms:
            raise SandboxTokenVerificationError(f"the token's algorithm {algorithm!r} is not one of {algorithms}")
        return kid, algorithm

    def _usable(self, kid: str, algorithm: str) -> tuple[Any, str]:
        data = self._cache.find(kid)
        if data is None:
            raise SandboxTokenVerificationError(f"the service has no key {kid!r}")
        if data.get("alg", algorithm) != algorithm:
            raise SandboxTokenVerificationError(f"the key {kid!r} is not for {algorithm}")
        return self._trying(lambda: self._jwt.PyJWK(data, algorithm).key), algorithm

    # --- claims -------------------------------------------------------------------------------------------------------

    def _user(self, token: str, key: tuple[Any, str], audience: str, issuer: str | None) -> SandboxUser:
        claims = self._claims(token, key, issuer, ["sub"])
        host = urlsplit(audience).netloc if "://" in audience else audience
        if not host or host not in _audiences(claims):
            raise SandboxTokenVerificationError(f"the token is for {claims['aud']!r}, not for {host!r}")
        if claims["sub"] in ("", CALLBACK_SUBJECT):
            raise SandboxTokenVerificationError("the token is not that of a person")
        email, name = claims.get("email"), claims.get("name")
        return SandboxUser(
            subject=claims["sub"],
            email=email if isinstance(email, str) else None,
            name=name if isinstance(name, str) else None,
            expires_at=datetime.fromtimestamp(int(claims["exp"]), UTC),
        )

    def _callback(
        self,
        signature: str,
        key: tuple[Any, str],
        body: bytes,
        aud: str | AudienceMatcher | None,
        issuer: str | None,
    ) -> SandboxCallback:
        claims = self._claims(signature, key, issuer, ["sub", "body_sha256"])
        if claims["sub"] != CALLBACK_SUBJECT:
            raise SandboxTokenVerificationError("the signature is not that of a callback")
        matches = (lambda url: url == aud) if isinstance(aud, str) else aud
        if matches is not None and not any(matches(url) for url in _audiences(claims)):
            raise SandboxTokenVerificationError(f"the callback is for {claims['aud']!r}")
        digest = hashlib.sha256(body).hexdigest()
        if not hmac.compare_digest(digest.encode(), str(claims["body_sha256"]).encode()):
            raise SandboxTokenVerificationError("the signature is for another body")
        try:
            return SandboxCallback.from_dict(json.loads(body))
        except (ValueError, RecursionError, RemoteProtocolError) as error:
            raise SandboxTokenVerificationError(f"the callback's body cannot be read: {error}") from error

    def _claims(self, token: str, key: tuple[Any, str], issuer: str | None, more: list[str]) -> dict[str, Any]:
        options = {"require": ["exp", "iat", "iss", "aud", *more], "verify_aud": False, "verify_iss": False}
        claims: dict[str, Any] = self._trying(
            lambda: self._jwt.decode(token, key[0], algorithms=[key[1]], leeway=LEEWAY, options=options)
        )
        if not isinstance(claims["sub"], str):
            raise SandboxTokenVerificationError("the token's subject is not a text")
        if issuer is not None and str(claims["iss"]).rstrip("/") != issuer.rstrip("/"):
            raise SandboxTokenVerificationError(f"the token was issued by {claims['iss']!r}, not by {issuer!r}")
        return claims

    def _trying(self, function: Callable[[], Any]) -> Any:
        """What PyJWT and cryptography make of bytes from elsewhere. They raise many things."""
        try:
            return function()
        except Exception as error:
            raise SandboxTokenVerificationError(f"the token is not valid: {error}") from error


def _audiences(claims: dict[str, Any]) -> list[str]:
    found = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    return [audience for audience in found if isinstance(audience, str)]
