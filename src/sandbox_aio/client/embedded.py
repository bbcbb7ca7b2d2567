"""The server of the endpoint `local`: a process of its own, started when first needed, that dies with this one.

Its standard input is the lifeline: a pipe that nobody writes to, and that closes when this process ends, however it
ends.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import attrs

from ..errors import EmbeddedServerError

if TYPE_CHECKING:
    from typing import IO

__all__ = ["EmbeddedServer", "LocalService"]

_COMMAND = (sys.executable, "-P", "-m", "sandbox_aio.server.embedded_main")
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
"""How long the server may take to destroy its sandboxes; then it is killed, and its next start cleans up."""
_MAX_LINE_BYTES = 64 * 1024


@attrs.frozen(kw_only=True)
class LocalService:
    """Where the embedded server listens, and the key that it knows."""

    endpoint: str
    api_key: str


class EmbeddedServer:
    """The one embedded server of a client. `start` may be called by many tasks at once; the first one starts it."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.service: LocalService | None = None
        """Known as long as the server runs."""

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    async def start(self) -> LocalService:
        """Start the server, unless it runs, and tell where it listens. Cancelled, one that is not ready is stopped.

        Raises:
            EmbeddedServerError: It cannot run here; `hint` says what to do.
        """
        if self.service is not None:
            return self.service
        async with self._lock:
            if self.service is None:
                self._process = await anyio.to_thread.run_sync(_spawn)
                try:
                    self.service = await anyio.to_thread.run_sync(
                        _wait_until_ready, self._process, abandon_on_cancel=True
                    )
                except BaseException:
                    await self.aclose()
                    raise
            return self.service

    async def aclose(self) -> None:
        """End the server and everything in it, within `_STOP_SECONDS`. Closing again does nothing."""
        process, self._process, self.service = self._process, None, None
        if process is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_stop, process)


def _spawn() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        raise EmbeddedServerError(f"the embedded server could not be started: {error}") from error


def _wait_until_ready(process: subprocess.Popen[bytes]) -> LocalService:
    assert process.stdout is not None
    line = _read_line(process.stdout)
    if line is None:
        raise EmbeddedServerError(f"the embedded server was not ready within {_START_SECONDS:g} s")
    try:
        answer = json.loads(line)
        if "error" in answer:
            raise EmbeddedServerError(answer["error"], answer.get("hint") or None)
        return LocalService(endpoint=answer["endpoint"], api_key=answer["api_key"])
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddedServerError(
            "the embedded server ended before it was ready", "install it with: pip install 'sandbox-aio[server]'"
        ) from error


def _read_line(pipe: IO[bytes]) -> bytes | None:
    """Read up to a newline or the end of the pipe; None if neither comes in time."""
    deadline = time.monotonic() + _START_SECONDS
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
        readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return None
        piece = os.read(pipe.fileno(), 4096)
        if not piece:
            break
        line += piece
    return line


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdout.close()
