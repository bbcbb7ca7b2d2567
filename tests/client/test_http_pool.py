"""The pool of connections across event loops and processes. These tests run their event loops themselves."""

from __future__ import annotations

import gc

import anyio
import pytest

from sandbox_aio.drivers.http import HttpDriver
from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.http_call import HttpCall
from tests.client.fake_service import Reply, Request, fake_service


async def reply(request: Request) -> Reply:
    """Whatever is asked."""
    return Reply()


async def use(http: HttpDriver, *, close: bool) -> None:
    """One call, on connections that are kept."""
    async with fake_service(reply) as service:
        status = await http.call(HttpCall(method="GET", url=service.url, read=lambda answer: answer.status, timeout=5))
        assert status == 200
        if close:
            await http.pool.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_one_driver_serves_one_event_loop_after_the_other(backend: str) -> None:
    """The connections of a loop that is over cannot be closed any more; they are left to the garbage collector."""
    http = HttpDriver(headers={}, max_retries=0)
    anyio.run(lambda: use(http, close=False), backend=backend)
    anyio.run(lambda: use(http, close=True), backend=backend)
    gc.collect()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_two_event_loops_at_once_are_refused(backend: str) -> None:
    http = HttpDriver(headers={}, max_retries=0)

    async def other() -> None:
        with pytest.raises(LocalProtocolError, match="make one for each loop"), http.pool.lend("http://h"):
            raise AssertionError

    async def main() -> None:
        with http.pool.lend("http://h"):
            await anyio.to_thread.run_sync(lambda: anyio.run(other, backend=backend))
        await http.pool.aclose()

    anyio.run(main, backend=backend)
