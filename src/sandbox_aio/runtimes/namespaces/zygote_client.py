"""The server's side of the zygote: starting it, reaching it again, and asking it things."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from ..base import RuntimeFailure
from . import control

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["ZygoteClient", "connect", "spawn"]

REQUEST_TIMEOUT_S: Final = 60.0
"""Longer than the zygote itself takes to give up a boot."""

# The first line of stdin is the module search path, the second the settings: a command line would be readable in
# every sandbox.
_BOOTSTRAP: Final = (
    "import json,sys;"
    "sys.path[:]=json.loads(sys.stdin.buffer.readline());"
    "from sandbox_aio.runtimes.namespaces.zygote import main;"
    "main()"
)


def spawn(
    control_socket: Path, settings: Mapping[str, Any], descriptors: Mapping[str, int], *, detached: bool, log: Path
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a zygote that listens on `control_socket`, and return its process and a connection to it.

    The zygote inherits `descriptors`; they are named in its settings. Its environment is empty. It is in a session of
    its own, so that a Ctrl-C on the terminal does not reach it. `detached`: the process that is returned soon ends,
    and the zygote is nobody's child. Blocks for the time of a fork. Raises OSError.
    """
    control_socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        listener.bind(str(control_socket))
        control_socket.chmod(0o600)
        listener.listen(8)
        connection.connect(str(control_socket))  # Before the zygote is there: if we die now, it sees the end of this.
        inherited = {**descriptors, "control": listener.fileno()}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={},
            cwd="/",
            pass_fds=list(inherited.values()),
            start_new_session=True,
        )
        assert process.stdin is not None
        path = [os.path.abspath(entry) for entry in sys.path if entry and os.path.exists(entry)]
        lines = (path, {**settings, **inherited, "detached": detached})
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.writelines(json.dumps(line).encode() + b"\n" for line in lines)
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(output)
        listener.close()
    return process, connection


def connect(control_socket: Path) -> socket.socket | None:
    """Return a connection to the zygote that listens there; None if none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(str(control_socket))
    except OSError:
        connection.close()
        return None
    return connection


_Answer = tuple[dict[str, Any], list[int]]


class ZygoteClient:
    """One control connection, on the running event loop. Requests may overlap; each waits for the answer with its
    number.

    `on_exit` is called with a sandbox's id and a reason when it ends by itself, `on_loss` once when the zygote ends
    first.
    """

    def __init__(
        self, connection: socket.socket, on_exit: Callable[[str, str], None], on_loss: Callable[[], None]
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[_Answer]] = {}
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection, self._on_readable)

    async def request(
        self, op: str, descriptors: Sequence[int] = (), *, timeout: float = REQUEST_TIMEOUT_S, **fields: Any
    ) -> dict[str, Any]:
        """Send one request with some descriptors and return its answer, which may be an error (`"ok"` is false).

        Descriptors that come with the answer are closed.

        Raises RuntimeFailure when the zygote is gone or does not answer within `timeout` seconds.
        Cancellation: the request is not taken back; its answer is dropped.
        """
        message, received = await self._exchange(op, descriptors, timeout=timeout, **fields)
        _close_all(received)
        return message

    async def socket(self, op: str, **fields: Any) -> socket.socket | None:
        """Send one request and return the socket that comes with its answer, non-blocking; None if there is none."""
        _, received = await self._exchange(op, (), **fields)
        if not received:
            return None
        _close_all(received[1:])
        found = socket.socket(fileno=received[0])
        found.setblocking(False)
        return found

    async def _exchange(
        self, op: str, descriptors: Sequence[int], *, timeout: float = REQUEST_TIMEOUT_S, **fields: Any
    ) -> _Answer:
        """Do as `request`, but hand the descriptors that came with the answer to the caller."""
        number = next(self._numbers)
        answer: asyncio.Future[_Answer] = self._loop.create_future()
        self._answers[number] = answer
        taken = False
        try:
            async with asyncio.timeout(timeout):
                await self._send({"op": op, "seq": number, **fields}, list(descriptors))
                await asyncio.wait([answer])
            taken = True
            return answer.result()
        except TimeoutError:
            raise RuntimeFailure(f"the zygote did not answer {op!r} within {timeout:g} s", kind="Runtime") from None
        except (OSError, control.MessageError) as error:
            raise RuntimeFailure(f"the zygote did not take {op!r}: {error}", kind="Runtime") from error
        finally:
            del self._answers[number]
            if not taken and answer.done() and not answer.cancelled() and answer.exception() is None:
                _close_all(answer.result()[1])  # It came in the instant in which the caller stopped waiting for it.

    async def _send(self, message: control.Message, descriptors: list[int]) -> None:
        async with self._sending:
            while True:
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
            if self._connection.fileno() != -1:
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
        if (answer := self._answers.get(message.get("seq", 0))) is not None and not answer.done():
            answer.set_result((message, descriptors))
            return
        _close_all(descriptors)
        if message.get("event") == "exit":
            self._on_exit(str(message["id"]), str(message["reason"]))

    def close(self) -> None:
        """End the connection; an ephemeral zygote then ends everything. Requests that wait fail."""
        if self._connection.fileno() == -1:
            return
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(RuntimeFailure("the zygote ended, and its sandboxes with it", kind="Runtime"))


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
