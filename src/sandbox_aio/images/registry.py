"""One registry, by the OCI distribution protocol: what is asked, retried, redirected and authenticated.

Every answer has a bound, every request a deadline for silence and a number of tries. Credentials go to the registry
itself and to the token service it names, never to where it redirects.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urljoin, urlsplit

import httpx

from .errors import ImageError
from .manifest import ACCEPTED
from .registry_auth import Authenticator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from .access import Credentials, RegistryAccess

__all__ = ["Registry"]

MAX_MANIFEST: Final = 4 << 20
TRIES: Final = 5
"""Of one request."""
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 8.0
"""Seconds between tries: they double, and what the registry asks for counts up to the longest."""
SILENCE: Final = 60.0
"""Seconds in which a registry must send something."""
MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_AGAIN: Final = (408, 429, 500, 502, 503, 504)


class Registry:
    """A registry and its mirrors. Use it in `async with`."""

    def __init__(self, name: str, access: RegistryAccess, credentials: Credentials | None = None) -> None:
        self.name: str = name
        self._bases = access.bases(name)
        self._client = httpx.AsyncClient(
            verify=access.tls(),
            timeout=httpx.Timeout(SILENCE, connect=15.0, pool=None),
            limits=httpx.Limits(max_connections=16),
            follow_redirects=False,
            headers={"user-agent": "sandbox-aio"},
        )
        own = self._bases[-1]
        self._authenticators = {
            base: Authenticator(self._client, base, credentials if base == own else None) for base in self._bases
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def manifest(self, repository: str, wanted: str) -> tuple[bytes, str]:
        """A manifest or an index, by its tag or digest, and the digest it has. Asks the mirrors first.

        Raises ImageError of kind `ImageNotFound`, `ImageUnauthorized` or `ImagePull`.
        """
        path = f"/v2/{repository}/manifests/{wanted}"
        async with self._ask("GET", path, _pull(repository), {"accept": ", ".join(ACCEPTED)}) as response:
            data = await _read(response, MAX_MANIFEST, f"the manifest of {repository} at {self.name}")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if wanted.startswith("sha256:") and wanted != digest:
            raise ImageError(f"{self.name} sent another manifest than {wanted}", kind="ImagePull")
        return data, digest

    async def blob(self, repository: str, digest: str, size: int) -> bytes:
        """A small blob, whole and verified. Raises ImageError."""
        what = f"the part {digest} of {repository} at {self.name}"
        async with self.open_blob(repository, digest) as response:
            data = await _read(response, size, what)
        if len(data) != size or f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise ImageError(f"{what} is not what its digest says", kind="ImagePull")
        return data

    def open_blob(
        self, repository: str, digest: str, offset: int = 0
    ) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        """The answer that brings a blob from `offset` on; status 200 brings it from its begin all the same."""
        headers = {"range": f"bytes={offset}-"} if offset else {}
        return self._ask("GET", f"/v2/{repository}/blobs/{digest}", _pull(repository), headers)

    # How anything is asked.

    @contextlib.asynccontextmanager
    async def _ask(
        self, method: str, path: str, scope: str, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx.Response]:
        """An answer that is good, of the first place that gives one."""
        failure: ImageError | None = None
        for base in self._bases:
            try:
                response = await self._try(base, method, path, scope, headers)
            except ImageError as error:
                failure = error  # A mirror that fails is passed over; the last word is the registry's own.
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return
        assert failure is not None
        raise failure

    async def _try(self, base: str, method: str, path: str, scope: str, headers: Mapping[str, str]) -> httpx.Response:
        authenticator, challenged = self._authenticators[base], 0
        pause, tries = FIRST_PAUSE, 0
        while True:
            tries += 1
            try:
                response = await self._follow(method, base + path, {**headers, **authenticator.headers(scope)})
            except (httpx.HTTPError, OSError) as error:
                if tries >= TRIES:
                    reason = str(error) or type(error).__name__
                    raise ImageError(f"{base} cannot be reached: {reason}", kind="ImagePull") from error
                asked = 0.0
            else:
                if response.is_success:
                    return response
                text = await _explanation(response)
                if response.status_code == 401 and challenged < 2 and "www-authenticate" in response.headers:
                    challenged += 1
                    tries -= 1
                    await self._learn(authenticator, response.headers["www-authenticate"], scope)
                    continue
                if response.status_code not in _AGAIN or tries >= TRIES:
                    raise _refusal(base + path, response.status_code, text)
                asked = _retry_after(response)
            await asyncio.sleep(min(max(pause * random.uniform(0.5, 1), asked), LONGEST_PAUSE))
            pause *= 2

    async def _learn(self, authenticator: Authenticator, challenge: str, scope: str) -> None:
        try:
            await authenticator.learn(challenge, scope)
        except (httpx.HTTPError, OSError, httpx.InvalidURL) as error:
            raise ImageError(f"{self.name}: no token can be had: {error!r}", kind="ImageUnauthorized") from error

    async def _follow(self, method: str, url: str, headers: Mapping[str, str]) -> httpx.Response:
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request(method, url, headers=headers)
            response = await self._client.send(request, stream=True)
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            await response.aclose()
            target = urljoin(url, response.headers["location"])
            old, new = urlsplit(url), urlsplit(target)
            if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
                raise ImageError(f"{url} redirects to {target[:200]!r}, which is not secure", kind="ImagePull")
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                headers = {name: value for name, value in headers.items() if name != "authorization"}
            url = target
        raise ImageError(f"{url} redirects for ever", kind="ImagePull")


def _pull(repository: str) -> str:
    return f"repository:{repository}:pull"


async def _read(response: httpx.Response, limit: int, what: str) -> bytes:
    data = bytearray()
    try:
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > limit:
                raise ImageError(f"{what} is longer than {limit:,} bytes", kind="ImagePull")
    except (httpx.HTTPError, OSError) as error:
        raise ImageError(f"{what} broke off: {error!r}", kind="ImagePull") from error
    return bytes(data)


async def _explanation(response: httpx.Response) -> str:
    """What an answer that is no good says, as far as it is short."""
    text = bytearray()
    with contextlib.suppress(httpx.HTTPError, OSError):
        async for piece in response.aiter_bytes():
            text += piece
            if len(text) > 1000:
                break
    await response.aclose()
    return bytes(text[:300]).decode(errors="replace").strip()


def _retry_after(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def _refusal(url: str, status: int, text: str) -> ImageError:
    if status == 404:
        return ImageError(f"there is no {url}", kind="ImageNotFound")
    if status in (401, 403):
        return ImageError(f"{url} may not be read: {status} {text}", kind="ImageUnauthorized")
    return ImageError(f"{url} answered {status} {text}", kind="ImagePull")
