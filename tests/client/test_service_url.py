"""Service URLs in the client: tokens renewed in time and for all at once, requests sent again where that is right."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import httpx
import pytest

from sandbox_aio import (
    AsyncSandbox,
    AsyncSandboxClient,
    AsyncServiceURL,
    DownloadURL,
    LocalProtocolError,
    RemoteProtocolError,
    RequestTimeoutError,
    ResourceNotFoundError,
    SandboxConnectionError,
    ServiceLoginURL,
)
from sandbox_aio.client import service_url
from tests.client.fake_service import FakeService, Reply, Request, error, fake_service

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

pytestmark = pytest.mark.anyio

TOKEN = "x-langsmith-sandbox-service-token"
BOX = "/api/v2/sandboxes/boxes/box"


@attrs.define(eq=False)
class Backend:
    """A control plane that gives tokens t1, t2 and so on, and a service behind it."""

    service: Callable[[Request], Awaitable[Reply]] | None = None
    """Answers requests to the service; by default with what was asked."""
    minted: list[dict[str, Any]] = attrs.field(factory=list)
    """The bodies of requests for a token."""
    refusals: list[Reply] = attrs.field(factory=list)
    """Given instead of tokens, one after the other."""
    before_token: Callable[[], Awaitable[None]] | None = None
    mint_headers: list[str | None] = attrs.field(factory=list)

    async def __call__(self, request: Request) -> Reply:
        origin = f"http://{request.headers['host']}"
        if request.path == BOX:
            return Reply(json={"name": "box", "dataplane_url": f"{origin}/data"})
        if request.path == f"{BOX}/service-url":
            if self.before_token is not None:
                await self.before_token()
            if self.refusals:
                return self.refusals.pop(0)
            self.minted.append(request.json)
            self.mint_headers.append(request.headers.get("x-trace"))
            return self._token(origin, request.json)
        if request.path == f"{BOX}/download-url":
            return Reply(json={"download_url": f"{origin}/dl/x", "token": "x", "echo": request.json})
        if request.path.startswith("/svc/box/80"):
            if self.service is not None:
                return await self.service(request)
            return Reply(json={"method": request.method, "target": request.target, "token": request.headers[TOKEN]})
        return error(404, "NotFound", f"no {request.path}")

    def _token(self, origin: str, wanted: dict[str, Any]) -> Reply:
        if "access" in wanted:
            return Reply(json={"browser_url": f"{origin}/login", "access": wanted["access"]})
        token = f"t{len(self.minted)}"
        made = {"browser_url": f"{origin}/b?{token}", "service_url": f"{origin}/svc/box/80/", "token": token}
        embedding = {"embed_url": f"{origin}/e#{token}", "embed_origins": wanted.get("embed_origins", [])}
        return Reply(json={**made, **embedding, "expires_at": f"at {token}"})


@attrs.frozen
class Case:
    """A sandbox, and who plays the servers."""

    backend: Backend
    server: FakeService
    client: AsyncSandboxClient
    sandbox: AsyncSandbox

    @property
    def asked(self) -> list[Request]:
        """What the service was asked."""
        return [request for request in self.server.requests if request.path.startswith("/svc/")]


@pytest.fixture
async def case() -> AsyncIterator[Case]:
    backend = Backend()
    async with (
        fake_service(backend) as server,
        AsyncSandboxClient(api_endpoint=f"{server.url}/api/v2/sandboxes", api_key="k") as client,
    ):
        yield Case(backend, server, client, await client.get_sandbox("box"))


def in_turn(*replies: Reply) -> Callable[[Request], Awaitable[Reply]]:
    """Answer with one reply after the other; the last one stays."""
    left = list(replies)

    async def answer(_: Request) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


def age(url: AsyncServiceURL, seconds: float) -> None:
    """Have the token been made so long ago."""
    assert url._source is not None
    url._source._made -= seconds
    url._source._expires -= seconds


async def test_requests_go_to_the_service_with_the_token_alone(case: Case) -> None:
    url = await case.sandbox.service(80)
    for method in ("get", "post", "put", "patch", "delete"):
        answer = await getattr(url, method)("/a", params={"b": "c"}, headers={"x-own": "1", TOKEN: "other"})
        assert isinstance(answer, httpx.Response)
        assert answer.json() == {"method": method.upper(), "target": "/svc/box/80/a?b=c", "token": "t1"}
    assert (await url.request("OPTIONS")).json()["target"] == "/svc/box/80/"
    first = case.asked[0]
    assert "x-api-key" not in first.headers
    assert first.headers["x-own"] == "1"
    assert case.backend.minted == [{"port": 80, "expires_in_seconds": 600}]
    answer = await url.post(json={"a": 1})
    assert case.asked[-1].json == {"a": 1}
    assert answer.elapsed.total_seconds() > 0


async def test_what_a_url_says(case: Case) -> None:
    url = await case.client.service("box", 80, expires_in_seconds=60, embed_origins=["https://a.example"])
    base = case.server.url
    assert await url.get_token() == url.token == "t1"
    assert await url.get_service_url() == url.service_url == f"{base}/svc/box/80/"
    assert await url.get_browser_url() == url.browser_url == f"{base}/b?t1"
    assert await url.get_embed_url() == url.embed_url == f"{base}/e#t1"
    assert await url.get_expires_at() == url.expires_at == "at t1"
    assert url.embed_origins == ["https://a.example"]
    assert "t1" not in repr(url)
    age(url, 46)
    assert url.token == "t1"
    assert await url.get_token() == url.token == "t2"
    assert case.backend.minted[0] == case.backend.minted[1]


async def test_a_token_is_renewed_with_the_same_headers_before_it_expires(case: Case) -> None:
    url = await case.sandbox.service(80, headers={"x-trace": "1"})
    age(url, 569)
    assert (await url.get()).json()["token"] == "t1"
    age(url, 1)
    assert (await url.get()).json()["token"] == "t2"
    age(url, -60)  # our clock was set back
    assert (await url.get()).json()["token"] == "t3"
    assert case.backend.mint_headers == ["1", "1", "1"]


async def test_many_callers_share_one_renewal(case: Case) -> None:
    url = await case.sandbox.service(80)
    age(url, 599)
    answers = []

    async def ask() -> None:
        answers.append((await url.get()).json()["token"])

    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(ask)
    assert answers == ["t2"] * 30
    assert len(case.backend.minted) == 2


async def test_a_renewal_that_is_cancelled_is_done_by_the_next(case: Case) -> None:
    url = await case.sandbox.service(80)
    age(url, 599)
    arrived, released = anyio.Event(), anyio.Event()

    async def hold() -> None:
        arrived.set()
        await released.wait()

    case.backend.before_token = hold
    answers = []

    async def ask() -> None:
        answers.append(await url.get_token())

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(ask)
                await arrived.wait()
                tasks.start_soon(ask)
                scope.cancel()
        released.set()
    assert len(answers) == 1
    assert answers[0] == url.token


async def test_a_token_that_is_still_valid_is_used_while_no_other_is_to_be_had(case: Case) -> None:
    url = await case.sandbox.service(80)
    age(url, 580)
    case.backend.refusals = [Reply(raw=b"")] * 4
    assert await url.get_token() == "t1"
    age(url, 20)
    case.backend.refusals = [Reply(raw=b"")] * 4
    with pytest.raises(SandboxConnectionError):
        await url.get_token()
    case.backend.refusals = [error(404, "SandboxNotFound")]
    with pytest.raises(ResourceNotFoundError):
        await url.get()


async def test_a_refused_token_is_replaced_once(case: Case) -> None:
    url = await case.sandbox.service(80)
    age(url, service_url.MIN_TOKEN_AGE)

    async def only_t2(request: Request) -> Reply:
        return Reply(body=request.body) if request.headers[TOKEN] == "t2" else error(401, "LinkExpired")

    case.backend.service = only_t2
    assert (await url.post(content=b"x")).content == b"x"
    case.backend.service = in_turn(error(401))
    for _ in range(3):
        assert (await url.get()).status_code == 401  # the program's own, so soon after another token
    assert len(case.backend.minted) == 2
    age(url, service_url.MIN_TOKEN_AGE)
    assert (await url.get()).status_code == 401
    assert len(case.backend.minted) == 3


async def test_who_was_refused_an_old_token_uses_the_new_one(case: Case) -> None:
    url = await case.sandbox.service(80)
    age(url, service_url.MIN_TOKEN_AGE)
    waiting = anyio.Event()
    refused = 0

    async def only_t2(request: Request) -> Reply:
        nonlocal refused
        if request.headers[TOKEN] == "t2":
            return Reply()
        refused += 1
        if refused == 10:
            waiting.set()
        await waiting.wait()
        return error(401)

    case.backend.service = only_t2
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(url.get)
    assert len(case.backend.minted) == 2
    assert len(case.asked) == 20


async def test_what_cannot_be_sent_twice_is_not(case: Case) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        yield b"a"

    url = await case.sandbox.service(80)
    age(url, service_url.MIN_TOKEN_AGE)
    case.backend.service = in_turn(error(401))
    assert (await url.put(content=pieces())).status_code == 401
    assert (await url.put(files={"f": b"x"})).status_code == 401
    case.backend.service = in_turn(error(503), Reply())
    assert (await url.put(content=pieces())).status_code == 503
    assert len(case.backend.minted) == 1


@pytest.mark.parametrize("method", ["get", "put", "delete"])
@pytest.mark.parametrize(
    "reply", [error(502), error(503), error(504), Reply(raw=b""), Reply(body=b"x" * 9, cut_after=4)]
)
async def test_idempotent_requests_are_sent_again(case: Case, method: str, reply: Reply) -> None:
    url = await case.sandbox.service(80)
    case.backend.service = in_turn(reply, Reply(body=b"good"))
    assert (await getattr(url, method)()).content == b"good"
    assert len(case.asked) == 2


async def test_others_are_not(case: Case) -> None:
    url = await case.sandbox.service(80)
    for status in (502, 503, 504):
        case.backend.service = in_turn(error(status), Reply())
        assert (await url.post()).status_code == status
    case.backend.service = in_turn(Reply(raw=b""), Reply())
    with pytest.raises(SandboxConnectionError, match="cut off"):
        await url.post()
    case.backend.service = in_turn(error(502, "ConnectionRefused"), Reply())
    answer = await url.get()
    assert (answer.status_code, answer.json()["detail"]["error"]) == (502, "ConnectionRefused")


async def test_retries_end(case: Case) -> None:
    async with AsyncSandboxClient(api_endpoint=case.client.api_endpoint, api_key="k", max_retries=1) as client:
        url = await client.service("box", 80)
        case.backend.service = in_turn(error(503))
        answer = await url.get()
        assert (answer.status_code, answer.json()["detail"]["error"]) == (503, "Error")
        assert len(case.asked) == 2
        case.backend.service = in_turn(Reply(raw=b""))
        with pytest.raises(SandboxConnectionError):
            await url.get()
        assert len(case.asked) == 4


async def test_a_request_that_takes_too_long(case: Case) -> None:
    url = await case.sandbox.service(80)

    async def never(_: Request) -> Reply:
        await anyio.sleep_forever()
        raise AssertionError

    case.backend.service = never
    with pytest.raises(RequestTimeoutError, match=r"0\.05 s"):
        await url.get(timeout=0.05)
    assert len(case.asked) == 1


@pytest.mark.parametrize("path", ["/../81/x", "..", "a/../../../x", "/../../../api/v2/sandboxes/boxes"])
async def test_a_path_does_not_lead_out_of_the_service(case: Case, path: str) -> None:
    url = await case.sandbox.service(80)
    with pytest.raises(ValueError, match="leads out of the service"):
        await url.get(path)
    assert case.asked == []


async def test_redirects_stay_with_the_caller(case: Case) -> None:
    url = await case.sandbox.service(80)
    case.backend.service = in_turn(Reply(status=302, headers={"location": "http://elsewhere.invalid/"}))
    assert (await url.get()).headers["location"] == "http://elsewhere.invalid/"
    with pytest.raises(ValueError, match="redirects"):
        await url.get(follow_redirects=True)


async def test_an_answer_that_is_compressed(case: Case) -> None:
    url = await case.sandbox.service(80)
    case.backend.service = in_turn(Reply(headers={"content-encoding": "gzip"}, body=gzip.compress(b"x" * 1000)))
    answer = await url.get()
    assert (answer.content, "content-encoding" in answer.headers) == (b"x" * 1000, False)


async def test_an_answer_is_streamed(case: Case) -> None:
    url = await case.sandbox.service(80)
    case.backend.service = in_turn(Reply(headers={"x-a": "b"}, body=b"x" * 200_000))
    async with url.stream("GET", "/big", params={"a": "b"}) as response:
        assert (response.status_code, response.headers["x-a"]) == (200, "b")
        assert case.asked[-1].target == "/svc/box/80/big?a=b"
        pieces = [piece async for piece in response]
        assert len(pieces) > 1
        assert b"".join(pieces) == b"x" * 200_000
    with pytest.raises(LocalProtocolError, match="closed"):
        await response.receive()
    again = await url.stream("GET")
    try:
        assert await again.read() == b"x" * 200_000
        assert await again.receive() == b""
    finally:
        await again.aclose()
    await again.aclose()


async def test_a_stream_that_is_cut_off_says_so(case: Case) -> None:
    url = await case.sandbox.service(80)
    case.backend.service = in_turn(Reply(body=b"x" * 9, cut_after=4))
    async with url.stream("GET") as response:
        with pytest.raises(SandboxConnectionError, match="cut off"):
            await response.read()
    assert len(case.asked) == 1


async def test_a_stream_that_is_left_closes_its_connection(case: Case) -> None:
    url = await case.sandbox.service(80)
    case.backend.service = in_turn(Reply(body=b"x" * 8_000_000))
    async with url.stream("GET") as response:
        assert await response.receive()
    with anyio.fail_after(5):
        while case.server.open > 1:
            await anyio.sleep(0.01)


async def test_a_stream_is_begun_again_with_another_token_or_when_it_may_help(case: Case) -> None:
    url = await case.sandbox.service(80)
    age(url, service_url.MIN_TOKEN_AGE)
    case.backend.service = in_turn(error(401), error(503), Reply(raw=b""), Reply(body=b"x"))
    async with url.stream("GET") as response:
        assert (response.status_code, await response.read()) == (200, b"x")
    case.backend.service = in_turn(error(502, "ConnectionRefused", "nothing listens"))
    async with url.stream("GET") as response:
        assert response.status_code == 502
        assert b"nothing listens" in await response.read()


async def test_a_stream_is_begun_once(case: Case) -> None:
    url = await case.sandbox.service(80)
    pending = url.stream("GET")
    async with pending:
        pass
    with pytest.raises(LocalProtocolError, match="sent already"):
        await pending


async def test_what_is_read_whole_is_bounded(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_aio.drivers.service_http.MAX_ANSWER_BYTES", 100)
    monkeypatch.setattr(service_url, "MAX_ANSWER_BYTES", 100)
    url = await case.sandbox.service(80)
    case.backend.service = in_turn(Reply(body=b"x" * 101))
    with pytest.raises(RemoteProtocolError, match="longer than 100 bytes"):
        await url.get()
    async with url.stream("GET") as response:
        with pytest.raises(RemoteProtocolError, match="longer than 100 bytes"):
            await response.read()


async def test_one_without_a_client(case: Case) -> None:
    url = AsyncServiceURL("http://b", f"{case.server.url}/svc/box/80/", "own", "2026-01-01T00:00:00Z")
    assert (await url.get("/x")).json()["token"] == "own"
    async with url.stream("GET") as response:
        assert b"own" in await response.read()
    case.backend.service = in_turn(error(401))
    assert (await url.get()).status_code == 401
    assert (await url.get_browser_url(), await url.get_embed_url(), url.embed_origins) == ("http://b", "", [])
    with anyio.fail_after(5):
        while case.server.open > 1:
            await anyio.sleep(0.01)


async def test_access_by_login(case: Case) -> None:
    found = await case.client.service("box", 80, access="restricted")
    assert found == ServiceLoginURL(f"{case.server.url}/login", "restricted")
    assert case.backend.minted == [{"port": 80, "access": "restricted"}]


async def test_arguments_that_cannot_be(case: Case) -> None:
    with pytest.raises(ValueError, match="port"):
        await case.sandbox.service(0)
    with pytest.raises(ValueError, match="path"):
        await case.sandbox.generate_download_url("")


async def test_a_download_url(case: Case) -> None:
    made = await case.sandbox.generate_download_url("/a", expires_in_seconds=5, content_disposition="inline")
    assert made == DownloadURL(f"{case.server.url}/dl/x", "x")
    assert case.server.requests[-1].json == {"path": "/a", "expires_in_seconds": 5, "content_disposition": "inline"}
