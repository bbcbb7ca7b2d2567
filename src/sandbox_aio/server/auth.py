"""Who may use the server. Wire protocol, sections 1.3 and 9.2 (B22)."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Final

from .errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .exchange import Head

__all__ = ["Gate"]

LOOPBACK_HOST: Final = re.compile(rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?")


class Gate:
    """Lets a request pass, or says why not.

    With keys, a request must carry one, in `x-api-key` or as a bearer token. Without, only programs on this machine may
    use the server: whatever reaches it must have asked for a loopback name, and must not come from a page of
    another origin, so that a web site that a user visits cannot reach the server through the browser.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def check(self, head: Head) -> None:
        """Raises ApiError 401, or 403 where no key would help."""
        if not self._digests:
            self._check_local(head)
            return
        key = _presented(head)
        if key is None:
            raise ApiError(401, "Unauthorized", "send an API key in the header X-Api-Key")
        if not self.knows(key):
            raise ApiError(401, "Unauthorized", "this API key is not one of the server's")

    def knows(self, key: bytes) -> bool:
        """Whether this is one of the keys."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # All of them: no early exit.
        return any(matches)

    def _check_local(self, head: Head) -> None:
        host = head.header(b"host") or b""
        origin = head.header(b"origin")
        if not LOOPBACK_HOST.fullmatch(host):
            raise ApiError(403, "Forbidden", "a server without API keys answers only to localhost")
        site = head.header(b"sec-fetch-site")
        elsewhere = site not in (None, b"same-origin", b"none")  # Said of requests that bear no origin, too.
        if elsewhere or (origin is not None and origin.partition(b"://")[2] != host):
            raise ApiError(403, "Forbidden", "a server without API keys does not answer pages of another origin")


def _presented(head: Head) -> bytes | None:
    key = head.header(b"x-api-key")
    if key is None:
        scheme, _, token = (head.header(b"authorization") or b"").partition(b" ")
        key = token.strip() if scheme.lower() == b"bearer" else None
    return key


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
