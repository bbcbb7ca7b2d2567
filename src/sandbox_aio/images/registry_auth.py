"""Proving to a registry who asks: basic authentication, and tokens (the "distribution" project's token protocol)."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from .errors import ImageError

if TYPE_CHECKING:
    import httpx

    from .access import Credentials

__all__ = ["Authenticator"]

MAX_TOKEN: Final = 64 << 10
DEFAULT_LIFETIME: Final = 60.0
MARGIN: Final = 10.0
"""Seconds before a token expires in which it is not used any more."""
_PARAMETER: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Authenticator:
    """The headers that one registry wants. Tokens are kept for each scope until they expire."""

    def __init__(self, client: httpx.AsyncClient, base: str, credentials: Credentials | None) -> None:
        self._client = client
        self._base = base
        self._credentials = credentials
        self._basic = False
        self._tokens: dict[str, tuple[str, float]] = {}

    def headers(self, scope: str) -> dict[str, str]:
        """What to send with a request of that scope, as far as it is known by now."""
        if self._basic:
            return {"authorization": self._basic_value()}
        token, until = self._tokens.get(scope, ("", 0.0))
        return {"authorization": f"Bearer {token}"} if token and time.monotonic() < until else {}

    async def learn(self, challenge: str, scope: str) -> None:
        """Do what a 401 asks for. Raises ImageError, of kind `ImageUnauthorized`, when that is impossible."""
        scheme = challenge.partition(" ")[0].lower()
        if scheme == "basic":
            if self._credentials is None:
                raise _refused(f"{self._base} wants a user name and a password")
            if self._basic:
                raise _refused(f"{self._base} does not accept the user name {self._credentials.username!r}")
            self._basic = True
        elif scheme == "bearer":
            await self._fetch_token(dict(_PARAMETER.findall(challenge)), scope)
        else:
            raise _refused(f"{self._base} wants to be authenticated to by {scheme!r}, which is not known here")

    def _basic_value(self) -> str:
        assert self._credentials is not None
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    async def _fetch_token(self, challenge: dict[str, str], scope: str) -> None:
        realm = challenge.get("realm", "")
        url = urlsplit(realm)
        if url.scheme != "https" and not (url.scheme == "http" and self._base.startswith("http://")):
            raise _refused(f"{self._base} sends its clients to {realm!r} for tokens, which is not secure")
        query = {"scope": scope}
        if "service" in challenge:
            query["service"] = challenge["service"]
        headers = {"authorization": self._basic_value()} if self._credentials is not None else {}
        async with self._client.stream("GET", realm, params=query, headers=headers) as response:
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_TOKEN:
                    raise _refused(f"the token service {realm} answers too much")
            if response.status_code != 200:
                who = f"for {self._credentials.username!r}" if self._credentials else "without credentials"
                raise _refused(f"the token service {realm} answered {response.status_code} {who}")
            try:
                document = json.loads(body)
                token = document.get("token") or document["access_token"]
                lifetime = float(document.get("expires_in") or DEFAULT_LIFETIME)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise _refused(f"the token service {realm} sent no token") from error
        if not isinstance(token, str) or not token.isprintable():
            raise _refused(f"the token service {realm} sent no token")
        self._tokens[scope] = (token, time.monotonic() + max(lifetime - MARGIN, MARGIN))


def _refused(message: str) -> ImageError:
    return ImageError(message, kind="ImageUnauthorized")
