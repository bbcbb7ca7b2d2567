"""E11 and E12 of the documentation: PostgreSQL and Redis in sandboxes, reached through tunnels by their own clients."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import psycopg
import pytest
import redis

from tests.examples.conftest import OURS
from tests.real.conftest import ASYNC_SETTINGS, eventually, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START = "POSTGRES_HOST_AUTH_METHOD=trust docker-entrypoint.sh postgres"
READY = "database system is ready to accept connections"
REDIS = "redis-server --port 6379 --save '' --dir /tmp"


def ask_postgres(port: int) -> str:
    """Ask for the version, write a table, and read it again by another connection."""
    with psycopg.connect(host="127.0.0.1", port=port, user="postgres", autocommit=True) as connection:
        version = connection.execute("SELECT version()").fetchone()
        connection.execute("CREATE TABLE IF NOT EXISTS words (word text)")
        with connection.cursor().copy("COPY words FROM STDIN") as copy:
            for number in range(20_000):
                copy.write_row([f"word {number}"])
    with psycopg.connect(host="127.0.0.1", port=port, user="postgres") as connection:
        assert connection.execute("SELECT count(*) >= 20000 FROM words").fetchone() == (True,)
        words = connection.execute("SELECT word FROM words").fetchmany(5)
        assert words[0] == ("word 0",)
    assert version is not None
    return str(version[0])


def ask_redis(port: int) -> None:
    """Set, get, and take a pipeline's answers in order."""
    with redis.Redis(host="127.0.0.1", port=port) as client:
        client.set("key", b"\0value" * 100_000)
        assert client.get("key") == b"\0value" * 100_000
        with client.pipeline() as pipeline:
            for number in range(500):
                pipeline.incrby("counter", number)
            assert pipeline.execute()[-1] == sum(range(500))
        client.flushall()


@pytest.mark.root
def test_e11_a_tunnel_to_postgres(m: Any) -> None:
    client = m.SandboxClient()
    snapshot_id = client.get_snapshot("postgres").id
    sb = client.create_sandbox(snapshot_id=snapshot_id)
    try:
        pg = sb.run(START, timeout=0, wait=False)
        for chunk in pg:
            if READY in chunk.data:
                break
        port = free_port()
        with sb.tunnel(remote_port=5432, local_port=port) as t:
            assert t.local_port == port
            assert "PostgreSQL" in eventually(lambda: ask_postgres(t.local_port), psycopg.OperationalError)
        owner = sb.run("stat -c '%U %u' /var/lib/postgresql/data")
        assert owner.stdout == "postgres 999\n"
        pg.kill()
    finally:
        client.delete_sandbox(sb.name)
        client.close()


@pytest.mark.root
def test_e12_two_tunnels_at_once(m: Any) -> None:
    client = m.SandboxClient()
    with (
        client.sandbox(snapshot_id=client.get_snapshot("postgres").id) as first,
        client.sandbox(snapshot_id=client.get_snapshot("host").id) as second,
    ):
        pg = first.run(START, timeout=0, wait=False)
        for chunk in pg:
            if READY in chunk.data:
                break
        rd = second.run(REDIS, timeout=0, wait=False)
        for chunk in rd:
            if "Ready to accept connections" in chunk.data:
                break
        with (
            first.tunnel(remote_port=5432, local_port=free_port()) as t1,
            second.tunnel(remote_port=6379, local_port=free_port()) as t2,
        ):
            for _ in range(3):
                assert "PostgreSQL" in ask_postgres(t1.local_port)
                ask_redis(t2.local_port)
    client.close()


class TestAsync:
    """The same in async code: ours on asyncio and on trio, the official client on asyncio."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture(params=ASYNC_SETTINGS, ids="-".join)
    def setting(self, request: pytest.FixtureRequest) -> tuple[str, str]:
        """The module that the program imports from, and its event loop."""
        chosen: tuple[str, str] = request.param
        return chosen

    @pytest.fixture
    def anyio_backend(self, setting: tuple[str, str]) -> str:
        return setting[1]

    @pytest.fixture
    async def client(self, setting: tuple[str, str]) -> AsyncIterator[Any]:
        async with importlib.import_module(setting[0]).AsyncSandboxClient() as opened:
            yield opened

    @pytest.mark.root
    async def test_e11_a_tunnel_to_postgres(self, client: Any, setting: tuple[str, str]) -> None:
        snapshot_id = (await client.get_snapshot("postgres")).id
        async with await client.sandbox(snapshot_id=snapshot_id) as sb:
            pg = await sb.run(START, timeout=0, wait=False)
            async for chunk in pg:
                if READY in chunk.data:
                    break
            tunnel = await sb.tunnel(remote_port=5432, local_port=free_port())
            try:
                version = await anyio.to_thread.run_sync(ask_postgres, tunnel.local_port)
                assert "PostgreSQL" in version
            finally:
                closing = tunnel.aclose() if setting[0] == OURS else tunnel.close()
                if closing is not None:
                    await closing
            await pg.kill()

    async def test_redis_through_a_tunnel(self, client: Any, setting: tuple[str, str]) -> None:
        async with await client.sandbox(snapshot_id=(await client.get_snapshot("host")).id) as sb:
            handle = await sb.run(REDIS, timeout=0, wait=False)
            async for chunk in handle:
                if "Ready to accept connections" in chunk.data:
                    break
            tunnel = await sb.tunnel(remote_port=6379, local_port=free_port())
            try:
                await anyio.to_thread.run_sync(ask_redis, tunnel.local_port)
            finally:
                closing = tunnel.aclose() if setting[0] == OURS else tunnel.close()
                if closing is not None:
                    await closing
