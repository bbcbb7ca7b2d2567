"""The service's public keys: where they are, and how long they are taken for true (wire protocol, section 6.6)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from .endpoint import DEFAULT_ENDPOINT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CACHE_SECONDS", "MAX_KEY_SET_BYTES", "REFETCH_SECONDS", "KeyCache", "key_set_url", "parse_key_set"]

CACHE_SECONDS: Final = 300.0
"""How long keys are taken for true."""

REFETCH_SECONDS: Final = 30.0
"""How often, at most, they are fetched for a key that is not among them."""

MAX_KEY_SET_BYTES: Final = 1024 * 1024

LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "::1"))


def key_set_url(*, api_url: str | None, jwks_url: str | None, allow_insecure: bool, environ: Mapping[str, str]) -> str:
    """Where the keys are: `jwks_url`, or a well-known path of the origin of `api_url` or else of `LANGSMITH_ENDPOINT`.

    Raises:
        ValueError: It is not an http or https URL, or anybody on the way could replace the keys.
    """
    url = jwks_url
    if not url:
        endpoint = api_url or environ.get("LANGSMITH_ENDPOINT", "").strip() or DEFAULT_ENDPOINT
        parts = urlsplit(endpoint)
        url = f"{parts.scheme}://{parts.netloc}/.well-known/jwks.json"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL; pass api_url or jwks_url")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK and not allow_insecure:
        raise ValueError(f"{url!r} is not https, so anybody on the way could replace the keys")
    return url


def parse_key_set(body: bytes) -> dict[str, dict[str, Any]]:
    """The keys of a JSON Web Key Set by their ids; those without an id cannot be named and are left out.

    Raises:
        ValueError: It is not one.
    """
    try:
        document = json.loads(body)
        keys = document["keys"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{body!r:.80} is not a JSON Web Key Set") from error
    if not isinstance(keys, list):
        raise ValueError(f"{body!r:.80} is not a JSON Web Key Set")
    return {key["kid"]: key for key in keys if isinstance(key, dict) and isinstance(key.get("kid"), str)}


class KeyCache:
    """Keys that were fetched, and when to fetch them again. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[str, Any]] = {}
        self._fetched: float | None = None

    def wants_fetch(self, kid: str, now: float) -> bool:
        """Whether to fetch the keys before looking for one."""
        if self._fetched is None or now - self._fetched >= CACHE_SECONDS:
            return True
        return kid not in self._keys and now - self._fetched >= REFETCH_SECONDS

    def fetched(self, keys: Mapping[str, dict[str, Any]], now: float) -> None:
        """Replace all keys."""
        self._keys = dict(keys)
        self._fetched = now

    def find(self, kid: str) -> dict[str, Any] | None:
        """The key with an id."""
        return self._keys.get(kid)
