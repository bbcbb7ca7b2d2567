"""The server's side of the zygote: starting it, and asking it things."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from ..base import RuntimeFailure
from . import control

__all__ = ["ZygoteClient", "spawn"]

REQUEST_TIMEOUT_S: Final = 60.0
_BOOTSTRAP: Final = (
    "import json,sys;"
    "p=sys.stdin.buffer.readline();"
    "sys.path[:]=json.loads(p);"
    "from sandbox_aio.runtimes.namespaces.zygote import main;"
    "main()"
)


def spawn(settings: dict[str, Any], descriptors: Sequence[int], *, detached: bool, log: int) -> subprocess.Popen[bytes]:
    """Start a zygote with `settings` and these descriptors of ours, under the same numbers.

    `detached`: it is nobody's child, so that it outlives this process whatever happens to it. Otherwise it still is in a session of
    its own, so that a Ctrl-C on the terminal does not reach it, and it ends when its control connection does.
    """
    path = [os.path.abspath(entry) for entry in sys.path if entry and os.path.exists(entry)]
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BOOTSTRAP],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env={},
        cwd="/",
        pass_fds=list(descriptors),
        start_new_session=True,
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
        stdin.write(json.dumps(path).encode() + b"\n" + json.dumps({**settings, "detached": detached}).encode() + b"\n")
    return child


class ZygoteClient:
    """One control connection. Requests may overlap; each waits for the answer with its own number."""

    def __init__(self, connection: socket.socket, on_exit: Callable[[str, str], None], on_loss: Callable[[], None]) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._on_readable)

    async def request(self, op: str, descriptors: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises RuntimeFailure when the zygote is gone, does not answer within 60 s, or answers with an error, which then names the stage.
        Cancellation: the request is not taken back; its answer is dropped.
        """
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._send({"op": op, "seq": number, **fields}, list(descriptors))
                return await answer
        except TimeoutError:
            raise RuntimeFailure(f"the zygote did not answer {op!r} within {REQUEST_TIMEOUT_S:g} s", kind="Runtime") from None
        except (OSError, control.MessageError) as error:
            raise RuntimeFailure(f"the zygote did not take {op!r}: {error}", kind="Runtime") from error
        finally:
            self._answers.pop(number, None)

    async def _send(self, message: dict[str, Any], descriptors: list[int]) -> None:
        async with self._sending:
            while True:
                if self._connection.fileno() == -1:
                    raise OSError("the zygote is gone")
                try:
                    control.send(self._connection, message, descriptors)
                except BlockingIOError:
                    await self._writable()
                else:
                    return

    async def _writable(self) -> None:
        writable = asyncio.Event()
        self._loop.add_writer(self._connection, writable.set)
        try:
            await writable.wait()
        finally:
            self._loop.remove_writer(self._connection)

    def _on_readable(self) -> None:
        try:
            received = control.receive(self._connection)
        except BlockingIOError:
            return
        except (OSError, control.MessageError):
            received = None
        if received is None:
            self.close()
            self._on_loss()
            return
        message, descriptors = received
        for descriptor in descriptors:
            os.close(descriptor)
        if message.get("event") == "exit":
            self._on_exit(str(message["id"]), str(message["reason"]))
        elif (answer := self._answers.get(message.get("seq", 0))) is not None and not answer.done():
            answer.set_result(message)

    def close(self) -> None:
        """End the connection; an ephemeral zygote then ends everything."""
        if self._connection.fileno() == -1:
            return
        self._loop.remove_reader(self._connection)
        self._connection.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(RuntimeFailure("the zygote ended; the runtime starts another one", kind="Runtime"))
