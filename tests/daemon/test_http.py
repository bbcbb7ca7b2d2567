"""The daemon's HTTP: the secret, errors, framing; and `POST /execute` (wire protocol, sections 2.1, 3.1, 3.2)."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.daemon.process import SECRET, masked, upgrade, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager

    from tests.daemon.process import Daemon

pytestmark = pytest.mark.anyio

HEAD = f"Host: x\r\nx-sandbox-secret: {SECRET}\r\n"


def fault(response: httpx.Response) -> tuple[int, str]:
    """Return the status and the type of a canonical error, and check its shape."""
    assert response.headers["content-type"] == "application/json"
    detail = response.json()["detail"]
    assert set(detail) == {"error", "message"}
    assert detail["message"]
    return response.status_code, detail["error"]


def ask(daemon: Daemon, *parts: str | bytes, eof: bool = False) -> bytes:
    """Send these parts one by one over a plain connection, and return all that comes back."""
    with daemon.connect() as connection:
        for part in parts:
            connection.sendall(part.encode() if isinstance(part, str) else part)
        if eof:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


# --- requests --------------------


async def test_it_says_that_it_is_there(daemon: Daemon) -> None:
    async with daemon.http() as client:
        response = await client.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("secret", ["", "wrong", SECRET + "x", SECRET[:-1]])
async def test_nothing_is_served_without_the_secret(daemon: Daemon, secret: str) -> None:
    async with daemon.http(**{"x-sandbox-secret": secret}) as client:
        for path in ("/healthz", "/nowhere", "/download?path=/etc/passwd"):
            assert fault(await client.get(path)) == (401, "Unauthorized")
        assert fault(await client.post("/execute", json={"command": "true"})) == (401, "Unauthorized")
    with pytest.raises(InvalidStatus) as refused:
        async with daemon.websocket(additional_headers={"x-sandbox-secret": secret}):
            pass
    assert refused.value.response.status_code == 401


async def test_unknown_paths_and_methods_are_errors(daemon: Daemon) -> None:
    async with daemon.http() as client:
        assert fault(await client.get("/nowhere")) == (404, "NotFound")
        assert fault(await client.get("/execute")) == (405, "MethodNotAllowed")
        assert fault(await client.put("/upload?path=x", content=b"")) == (405, "MethodNotAllowed")


async def test_a_request_for_a_websocket_that_is_none_is_an_error(daemon: Daemon) -> None:
    async with daemon.http() as client:
        assert fault(await client.get("/execute/ws")) == (400, "InvalidRequest")
        assert fault(await client.post("/execute/ws", content=b"x")) == (400, "InvalidRequest")
        assert fault(await client.get("/execute/ws", headers={"upgrade": "websocket"})) == (400, "InvalidRequest")


async def test_a_websocket_may_not_send_more_than_a_message_may_hold(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(limits={"message_bytes": 100_000}) as daemon:
        async with daemon.execute("cat") as session:
            await session.started()
            await session.send("input", data="x" * 200_000)
            await session.connection.wait_closed()
            assert session.connection.close_code == 1009


async def test_garbage_on_a_websocket_ends_that_connection_alone(daemon: Daemon) -> None:
    async with daemon.execute("cat") as other:
        await other.started()
        with upgrade(daemon) as connection:
            connection.sendall(b"\xff\xff\xff\xff" * 100)
            assert connection.recv(100)[:1] == b"\x88"  # a close frame
        await other.send("close_stdin")
        assert (await other.outcome()).exit_code == 0


async def test_a_client_that_pings_and_never_reads_is_dropped(daemon: Daemon) -> None:
    def ping_for_ever() -> None:
        with upgrade(daemon) as connection:
            while True:
                connection.sendall(masked(b"x" * 125, opcode=9) * 1000)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        await asyncio.to_thread(ping_for_ever)


@pytest.mark.parametrize(
    "garbage",
    [b"\0\1\2\3\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n"],
)
async def test_garbage_is_answered_and_the_connection_ends(daemon: Daemon, garbage: bytes) -> None:
    answer = await asyncio.to_thread(ask, daemon, garbage)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]["error"] == "InvalidRequest"


async def test_a_head_without_end_is_bounded(daemon: Daemon) -> None:
    answer = await asyncio.to_thread(ask, daemon, f"GET /healthz HTTP/1.1\r\n{HEAD}x: ", b"x" * 70_000)

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_half_a_request_is_not_served(daemon: Daemon) -> None:
    assert await asyncio.to_thread(ask, daemon, f"GET /healthz HTTP/1.1\r\n{HEAD}", eof=True) == b""
    assert await asyncio.to_thread(ask, daemon, "", eof=True) == b""


async def test_requests_may_come_one_after_the_other_and_all_at_once(daemon: Daemon) -> None:
    one = f"GET /healthz HTTP/1.1\r\n{HEAD}\r\n"
    last = f"GET /healthz HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n"
    answer = await asyncio.to_thread(ask, daemon, one + one + last)
    assert answer.count(b"HTTP/1.1 200 ") == 3

    body = json.dumps({"command": "echo hi"})
    post = f"POST /execute HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n{body}"
    answer = await asyncio.to_thread(ask, daemon, *(byte for byte in post + post + last))
    assert answer.count(b'"stdout": "hi\\n"') == 2


async def test_a_body_may_be_chunked_or_announced(daemon: Daemon) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"command": '
        yield b'"echo hi"}'

    async with daemon.http() as client:
        assert (await client.post("/execute", content=chunks())).json()["stdout"] == "hi\n"
    body = json.dumps({"command": "echo hi"})
    head = f"POST /execute HTTP/1.1\r\n{HEAD}Expect: 100-continue\r\nConnection: close\r\n"
    answer = await asyncio.to_thread(ask, daemon, f"{head}Content-Length: {len(body)}\r\n\r\n", body)
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 200 " in answer


async def test_a_body_that_is_not_wanted_is_not_asked_for(daemon: Daemon) -> None:
    head = "POST /nowhere HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n"
    answer = await asyncio.to_thread(ask, daemon, head)

    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_a_small_body_that_is_not_wanted_does_not_end_the_connection(daemon: Daemon) -> None:
    first = f"POST /nowhere HTTP/1.1\r\n{HEAD}Content-Length: 5\r\n\r\nxxxxx"
    last = f"GET /healthz HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n"
    answer = await asyncio.to_thread(ask, daemon, first + last)

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"HTTP/1.1 200 " in answer


async def test_a_large_body_that_is_not_wanted_is_answered_all_the_same(daemon: Daemon) -> None:
    async with daemon.http() as client:
        assert fault(await client.post("/nowhere", content=b"x" * 5_000_000)) == (404, "NotFound")
        assert fault(await client.post("/execute", content=b"x" * 5_000_000)) == (413, "RequestTooLarge")


async def test_a_connection_without_requests_is_closed(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(limits={"idle_seconds": 0.05}) as daemon:
        assert await asyncio.to_thread(ask, daemon) == b""


async def test_more_connections_than_allowed_are_turned_away(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(limits={"connections": 1}) as daemon:
        async with daemon.websocket() as session:
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                async with daemon.http() as client:
                    await client.get("/healthz")
            await session.execute("echo fine", close_stdin=True)
            assert (await session.outcome()).stdout == "fine\n"
        assert (await daemon.run("echo again")).stdout == "again\n"


# --- POST /execute --------------------


async def post(daemon: Daemon, **body: Any) -> httpx.Response:
    async with daemon.http() as client:
        return await client.post("/execute", json=body, timeout=30)


async def test_a_command_in_one_request(daemon: Daemon) -> None:
    response = await post(
        daemon, command="echo out; echo err >&2; cat; exit 3", shell="/bin/sh", env={"A": "b"}, cwd="/"
    )

    assert response.status_code == 200
    assert response.json() == {"stdout": "out\n", "stderr": "err\n", "exit_code": 3}


async def test_a_command_may_be_a_list_of_arguments(daemon: Daemon) -> None:
    response = await post(daemon, command=["printf", "%s|", "a b", "$HOME", "'"])

    assert response.json()["stdout"] == "a b|$HOME|'|"


@pytest.mark.parametrize("name", ["timeout", "timeout_seconds"])
async def test_a_timeout_of_a_request_is_an_error(daemon: Daemon, name: str) -> None:
    response = await post(daemon, command="sleep 100", **{name: 1})

    assert fault(response) == (400, "CommandTimeout")
    assert "1 seconds" in response.json()["detail"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": 5},
        {"command": []},
        {"command": ["a", 5]},
        {"command": "true", "timeout": "soon"},
        {"command": "true", "timeout": -1},
        {"command": "true", "cwd": "/no/such/place"},
        {"command": "true", "shell": "/no/such/shell"},
        {"command": "true", "env": {"A": "b"}, "run_config": {"user": "root"}},
        {"command": "true", "run_config": {"user": "nobody-of-this-name"}},
    ],
)
async def test_a_request_that_makes_no_sense_is_an_error(daemon: Daemon, body: dict[str, Any]) -> None:
    assert fault(await post(daemon, **body)) == (400, "CommandError")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_an_error(daemon: Daemon, content: bytes) -> None:
    async with daemon.http() as client:
        assert fault(await client.post("/execute", content=content)) == (400, "InvalidRequest")


async def test_output_beyond_the_limit_of_a_request_is_an_error(
    own_daemon: Callable[..., AbstractContextManager[Daemon]],
) -> None:
    with own_daemon(limits={"collected_bytes": 2_000_000}) as daemon:
        response = await post(daemon, command="head -c 1999999 /dev/zero")
        assert len(response.json()["stdout"]) == 1_999_999
        response = await post(daemon, command="yes")
        assert fault(response) == (400, "CommandError")
        assert "2000000 bytes" in response.json()["detail"]["message"]


async def test_a_command_whose_client_has_gone_is_killed(daemon: Daemon) -> None:
    path = daemon.root / "pid"
    body = json.dumps({"command": f"echo $$ > {path}; sleep 100", "timeout": 0})
    with daemon.connect() as connection:
        connection.sendall(f"POST /execute HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        with anyio.fail_after(10):
            while not path.exists() or not path.read_text():
                await asyncio.sleep(0.01)
    wait_until_gone(int(path.read_text()))
