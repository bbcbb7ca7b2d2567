"""One registry, by the OCI distribution protocol: what is asked, retried, redirected and authenticated.

Every answer has a bound, every request a deadline for silence and a number of tries. Credentials go to the registry
itself and to the token service it names, never to where it redirects. Nothing that a registry sends is decoded on the
way, so that no answer is larger than its bytes on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterable, Callable, Mapping
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urljoin, urlsplit

import attrs
import httpx

from .answers import raw_body, retry_after
from .backoff import Backoff
from .errors import ImageError, ImageErrorKind
from .manifest import ACCEPTED
from .registry_auth import Authenticator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from .access import Credentials, RegistryAccess

__all__ = ["SILENCE", "Registry", "Request", "pulling", "pushing"]

MAX_MANIFEST: Final = 4 << 20
TRIES: Final = 5
"""Of one request to a registry. A mirror gets one, and none after it could not be reached."""
SILENCE: Final = 60.0
"""Seconds in which a registry must send something."""
WHOLE: Final = 120.0
"""Seconds in which a manifest or a configuration must be there."""
CONNECT: Final = 15.0
EXPLANATION: Final = 10.0
"""Seconds for which the text of a refusal is waited for."""
MAX_EXPLANATION: Final = 1000
MAX_REDIRECTS: Final = 5
MAX_CHALLENGES: Final = 2
"""Times that one request proves who asks: its token may have just expired."""
MAX_CONNECTIONS: Final = 16
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_AGAIN: Final = (408, 429, 500, 502, 503, 504)


@attrs.frozen(kw_only=True)
class Request:
    """What a registry is asked."""

    method: str
    target: str
    """A path, below each of the registry's URLs; or a URL that the registry gave."""
    scopes: tuple[str, ...]
    """What the token must allow; see `pulling` and `pushing`."""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    content: Callable[[], bytes | AsyncIterable[bytes]] | None = None
    """Makes the body, for each try anew."""
    accepted: tuple[int, ...] = ()
    """Answers that are an answer too, beside those of success."""
    tries: int = TRIES
    silence: float = SILENCE
    """Seconds in which something must be sent, or be taken."""


class Registry:
    """A registry and its mirrors. Use it in `async with`.

    `kind` is what errors are that are of no better one. Raises OSError for certificates that cannot be read.
    """

    def __init__(
        self,
        name: str,
        access: RegistryAccess,
        credentials: Credentials | None = None,
        *,
        kind: ImageErrorKind = "ImagePull",
    ) -> None:
        self.name: str = name
        self.own: str = access.own_base(name)
        """The registry's own URL."""
        self._kind: ImageErrorKind = kind
        self._mirrors = list(access.bases(name)[:-1])
        self._client = httpx.AsyncClient(
            verify=access.tls(),
            timeout=httpx.Timeout(SILENCE, connect=CONNECT, pool=None),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            follow_redirects=False,
            headers={"user-agent": "sandbox-aio", "accept-encoding": "identity"},
        )
        self._authenticators = {
            base: Authenticator(self._client, base, credentials if base == self.own else None)
            for base in (*self._mirrors, self.own)
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
        request = Request(
            method="GET",
            target=f"/v2/{repository}/manifests/{wanted}",
            scopes=pulling(repository),
            headers={"accept": ", ".join(ACCEPTED)},
        )
        digest = wanted if wanted.startswith("sha256:") else None
        data = await self._whole(request, MAX_MANIFEST, digest, f"the manifest {wanted} of {repository}")
        return data, _digest(data)

    async def blob(self, repository: str, digest: str, size: int) -> bytes:
        """A small blob, whole and verified. Raises ImageError."""
        request = Request(method="GET", target=f"/v2/{repository}/blobs/{digest}", scopes=pulling(repository))
        what = f"the configuration {digest} of {repository}"
        data = await self._whole(request, size, digest, what)
        if len(data) != size:
            raise self._error(f"{what} has {len(data):,} bytes, and its manifest says {size:,}")
        return data

    def open_blob(self, repository: str, digest: str, offset: int = 0) -> AbstractAsyncContextManager[httpx.Response]:
        """The answer that brings a blob from `offset` on: status 206; 200 brings it from its begin all the same, and
        416 says that it is not so long.
        """
        request = Request(
            method="GET",
            target=f"/v2/{repository}/blobs/{digest}",
            scopes=pulling(repository),
            headers={"range": f"bytes={offset}-"} if offset else {},
            accepted=(416,) if offset else (),
        )
        return self.ask(request)

    def forsake_mirrors(self) -> bool:
        """Ask only the registry itself from now on: a mirror has sent what is wrong. Return whether there was one."""
        there = bool(self._mirrors)
        self._mirrors.clear()
        return there

    @contextlib.asynccontextmanager
    async def ask(self, request: Request) -> AsyncIterator[httpx.Response]:
        """Give the answer of the first place that has a good one: the mirrors, where only a path is asked for, and then
        the registry. Raises ImageError; and httpx.HTTPError while the answer is read.
        """
        response = await self._first(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def send(self, request: Request) -> httpx.Response:
        """Ask the registry itself; return the answer, of which the body was thrown away. Raises ImageError."""
        response = await self._try(self.own, request)
        await _explanation(response)
        return response

    # How anything is asked.

    async def _whole(self, request: Request, limit: int, digest: str | None, what: str) -> bytes:
        """A short answer, of the digest that it must have. What breaks off is asked for again."""
        backoff = Backoff(TRIES)
        while True:
            async with self.ask(request) as response:
                where = f"{what} at {response.request.url.host}"
                try:
                    async with asyncio.timeout(WHOLE):
                        data = await self._read(response, limit, where)
                except (httpx.HTTPError, OSError) as error:
                    failure = self._error(f"{where} broke off: {_reason(error)}")
                    failure.__cause__ = error
                else:
                    if digest is None or _digest(data) == digest:
                        return data
                    failure = self._error(f"{where} is not what its digest says")
                    if not self.forsake_mirrors():
                        raise failure
            if not await backoff.pause():
                raise failure

    async def _read(self, response: httpx.Response, limit: int, what: str) -> bytes:
        data = bytearray()
        async with raw_body(response) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > limit:
                    raise self._error(f"{what} is longer than {limit:,} bytes")
        return bytes(data)

    async def _first(self, request: Request) -> httpx.Response:
        for mirror in list(self._mirrors):
            try:
                return await self._try(mirror, attrs.evolve(request, tries=1))
            except ImageError as error:  # It is passed over; the last word is the registry's own.
                if isinstance(error.__cause__, (httpx.HTTPError, OSError)) and mirror in self._mirrors:
                    self._mirrors.remove(mirror)
        return await self._try(self.own, request)

    async def _try(self, base: str, request: Request) -> httpx.Response:
        authenticator, challenges = self._authenticators[base], 0
        backoff = Backoff(request.tries)
        while True:
            known = authenticator.headers(request.scopes)
            asked = 0.0
            try:
                response = await self._follow(base, request, known)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
                failure = self._error(f"{base} cannot be reached: {_reason(error)}")
                failure.__cause__ = error
            else:
                if response.is_success or response.status_code in request.accepted:
                    return response
                text = await _explanation(response)
                status = response.status_code
                if status == 401 and challenges < MAX_CHALLENGES and "www-authenticate" in response.headers:
                    challenges += 1
                    await authenticator.learn(response.headers.get_list("www-authenticate"), request.scopes, known)
                    continue
                failure = self._refusal(base, request, status, text)
                if status not in _AGAIN:
                    raise failure
                asked = retry_after(response)
            if not await backoff.pause(asked):
                raise failure

    async def _follow(self, base: str, request: Request, known: Mapping[str, str]) -> httpx.Response:
        start = url = _url(base, request.target)
        method, content = request.method, request.content
        timeout = httpx.Timeout(request.silence, connect=CONNECT, pool=None)
        for _ in range(MAX_REDIRECTS + 1):
            headers = {**request.headers, **known} if _origin(url) == _origin(base) else request.headers
            body = content() if content is not None else None
            response = await self._client.send(
                self._client.build_request(method, url, headers=headers, content=body, timeout=timeout), stream=True
            )
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            await response.aclose()
            url = self.locate(url, response.headers["location"])
            if response.status_code == 303:
                method, content = "GET", None
        raise self._error(f"{start} redirects for ever")

    def locate(self, url: str, location: str) -> str:
        """Where an answer of `url` sends us. Raises ImageError for what is not secure, or no URL."""
        schemes = ("https",) if url.startswith("https:") else ("http", "https")
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        except ValueError:
            target, usable = "", False
        if not usable:
            raise self._error(f"{url} redirects to {location[:200]!r}, which is not secure or no URL")
        return target

    def _refusal(self, base: str, request: Request, status: int, text: str) -> ImageError:
        url = _url(base, request.target)
        if status == 404:
            return ImageError(f"there is no {url}", kind="ImageNotFound")
        if status in (401, 403):
            what = "read" if request.method in ("GET", "HEAD") else "written"
            return ImageError(f"{url} may not be {what}: {status} {text}", kind="ImageUnauthorized")
        return self._error(f"{url} answered {status} {text}")

    def _error(self, message: str) -> ImageError:
        return ImageError(message, kind=self._kind)


def pulling(repository: str) -> tuple[str, ...]:
    """The scopes of reading a repository."""
    return (f"repository:{repository}:pull",)


def pushing(repository: str, source: str | None = None) -> tuple[str, ...]:
    """The scopes of writing a repository, perhaps with blobs of another one."""
    own = f"repository:{repository}:pull,push"
    return (own,) if source is None else (own, *pulling(source))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _url(base: str, target: str) -> str:
    return base + target if target.startswith("/") else target


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _explanation(response: httpx.Response) -> str:
    """What an answer that is no good says, as far as it is short and comes soon. The answer is closed."""
    text = bytearray()
    with contextlib.suppress(httpx.HTTPError, OSError):
        async with asyncio.timeout(EXPLANATION), raw_body(response) as pieces:
            async for piece in pieces:
                text += piece
                if len(text) > MAX_EXPLANATION:
                    break
    await response.aclose()
    return " ".join(bytes(text[:300]).decode(errors="replace").split())
