"""Proving to a registry who asks: basic authentication, and tokens (the "distribution" project's token protocol)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import httpx

from .answers import raw_body, retry_after
from .backoff import Backoff
from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .access import Credentials

__all__ = ["Authenticator"]

MAX_TOKEN: Final = 64 << 10
MAX_CHALLENGE: Final = 8 << 10
TOKEN_TRIES: Final = 3
TOKEN_DEADLINE: Final = 30.0
"""Seconds for one try to get a token."""
DEFAULT_LIFETIME: Final = 60.0
MARGIN: Final = 10.0
"""Seconds before a token expires in which it is not used any more."""
_WORD: Final = re.compile(r'([\w-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?', re.ASCII)


class Authenticator:
    """The headers that one registry wants. Tokens are kept for each set of scopes until they expire."""

    def __init__(self, client: httpx.AsyncClient, base: str, credentials: Credentials | None) -> None:
        self._client = client
        self._base = base
        self._credentials = credentials
        self._basic = False
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}
        self._lock = asyncio.Lock()

    def headers(self, scopes: tuple[str, ...]) -> Mapping[str, str]:
        """What to send with a request of these scopes, as far as it is known by now."""
        if self._basic:
            return {"authorization": self._basic_value()}
        token, until = self._tokens.get(scopes, ("", 0.0))
        return {"authorization": f"Bearer {token}"} if token and time.monotonic() < until else {}

    async def learn(self, challenges: Sequence[str], scopes: tuple[str, ...], sent: Mapping[str, str]) -> None:
        """Do what a 401 asks for that answered a request with the headers `sent`.

        Raises ImageError, of kind `ImageUnauthorized`, when that is impossible.
        """
        offered = _parse(challenges)
        async with self._lock:
            if self.headers(scopes) != sent:
                return  # Another request has learnt it meanwhile.
            if "bearer" in offered:
                await self._fetch_token(offered["bearer"], scopes)
            elif "basic" not in offered:
                known = ", ".join(repr(scheme[:40]) for scheme in offered) or "nothing"
                raise _refused(f"{self._base} wants to be authenticated to by {known}, which is not known here")
            elif self._credentials is None:
                raise _refused(f"{self._base} wants a user name and a password")
            elif self._basic:
                raise _refused(f"{self._base} does not accept the user name {self._credentials.username!r}")
            else:
                self._basic = True

    def _basic_value(self) -> str:
        assert self._credentials is not None
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    async def _fetch_token(self, challenge: Mapping[str, str], scopes: tuple[str, ...]) -> None:
        realm = challenge.get("realm", "")
        self._require_secure(realm)
        query: list[tuple[str, str | int | float | bool | None]] = [("scope", scope) for scope in scopes]
        if "service" in challenge:
            query.append(("service", challenge["service"]))
        headers = {"authorization": self._basic_value()} if self._credentials is not None else {}
        backoff = Backoff(TOKEN_TRIES)
        while True:
            asked = 0.0
            try:
                async with (
                    asyncio.timeout(TOKEN_DEADLINE),
                    self._client.stream("GET", realm, params=query, headers=headers) as response,
                ):
                    body = await _read(response, realm)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
                failure = _refused(f"the token service {realm} cannot be reached: {str(error) or type(error).__name__}")
                failure.__cause__ = error
            else:
                if response.status_code == 200:
                    token, lifetime = _token(body, realm)
                    self._tokens[scopes] = (token, time.monotonic() + max(lifetime - MARGIN, MARGIN))
                    return
                who = f"for {self._credentials.username!r}" if self._credentials else "without credentials"
                failure = _refused(f"the token service {realm} answered {response.status_code} {who}")
                if response.status_code < 500 and response.status_code != 429:
                    raise failure
                asked = retry_after(response)
            if not await backoff.pause(asked):
                raise failure

    def _require_secure(self, realm: str) -> None:
        """Passwords go over TLS, or where the registry itself is reached without it."""
        scheme = ""
        with contextlib.suppress(ValueError):
            scheme = urlsplit(realm).scheme
        if scheme != "https" and not (scheme == "http" and self._base.startswith("http://")):
            raise _refused(f"{self._base} sends its clients to {realm[:200]!r} for tokens, which is not secure")


def _parse(challenges: Sequence[str]) -> dict[str, dict[str, str]]:
    """The schemes that are offered, in small letters, each with its parameters. One line may hold several."""
    offered: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for challenge in challenges:
        for match in _WORD.finditer(challenge[:MAX_CHALLENGE]):
            name, quoted, plain = match.groups()
            if quoted is None and plain is None:
                parameters = offered.setdefault(name.lower(), {})
            else:
                parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return offered


async def _read(response: httpx.Response, realm: str) -> bytes:
    body = bytearray()
    async with raw_body(response) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > MAX_TOKEN:
                raise _refused(f"the token service {realm} answers more than {MAX_TOKEN:,} bytes")
    return bytes(body)


def _token(body: bytes, realm: str) -> tuple[str, float]:
    """The token of an answer, and its lifetime in seconds."""
    try:
        document = json.loads(body)
        token = document.get("token") or document["access_token"]
        lifetime = float(document.get("expires_in") or DEFAULT_LIFETIME)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _refused(f"the token service {realm} sent no token") from error
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
        raise _refused(f"the token service {realm} sent no token")
    return token, lifetime


def _refused(message: str) -> ImageError:
    return ImageError(message, kind="ImageUnauthorized")
