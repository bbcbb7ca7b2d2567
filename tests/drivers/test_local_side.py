"""The local port of a tunnel: what it may be, and that nobody who uses it keeps others from their turn."""

from __future__ import annotations

import errno
import itertools
import socket

import anyio
import anyio.lowlevel
import pytest

from sandbox_aio.drivers.local_side import TURNS_A_WAIT, LocalConnection, LocalSide
from sandbox_aio.drivers.local_socket import listen
from sandbox_aio.errors import TunnelLocalPortError

pytestmark = pytest.mark.anyio


class Loop:
    """Streams that lead back to the program itself, which always has more to say."""

    blocked = False

    def __init__(self) -> None:
        self.program = socket.socket()
        self.turns = 0
        self.side: LocalSide | None = None

    def opened(self, local: LocalConnection) -> None:
        assert self.side is not None
        self.side.attach(local, 1)

    def window(self, stream_id: int) -> int:
        return 4096

    def send(self, stream_id: int, data: memoryview) -> None:
        """Drop it."""

    def end(self, stream_id: int) -> None:
        """Nobody is there to be told."""

    def consumed(self, stream_id: int, size: int) -> None:
        """Nobody is there to be told."""

    def dropped(self, local: LocalConnection) -> None:
        """Nobody is there to be told."""

    def flush(self) -> None:
        self.turns += 1
        self.program.send(b"more")

    async def room(self) -> None:
        """There always is."""


async def test_a_program_that_always_has_more_to_say_leaves_others_their_turn() -> None:
    loop = Loop()
    listener = listen(0)
    loop.side = LocalSide(listener, loop)
    with loop.program:
        loop.program.connect(listener.getsockname())
        async with anyio.create_task_group() as group:
            group.start_soon(loop.side.serve)
            seen: list[int] = []
            while len(seen) < 10:
                await anyio.lowlevel.checkpoint()
                if loop.turns not in seen:
                    seen.append(loop.turns)
            group.cancel_scope.cancel()
        loop.side.close()
    steps = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert max(steps) <= 3 * TURNS_A_WAIT  # trio may let a task wait for a round or two
    assert max(steps) > 1


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
async def test_a_port_that_another_program_listens_on_is_taken(address: str) -> None:
    with socket.create_server(
        (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET, dualstack_ipv6=":" in address
    ) as other:
        port: int = other.getsockname()[1]
        with pytest.raises(TunnelLocalPortError, match=f"{port} is already in use") as caught:
            listen(port)
    assert caught.value.errno == errno.EADDRINUSE


async def test_a_port_whose_connections_linger_is_free() -> None:
    listener = listen(0)
    port: int = listener.getsockname()[1]
    with listener:
        listener.setblocking(True)
        with socket.create_connection(("127.0.0.1", port)) as program:
            accepted, _ = listener.accept()
            accepted.close()  # first, so that it lingers on this side
            assert program.recv(1) == b""
    listen(port).close()
