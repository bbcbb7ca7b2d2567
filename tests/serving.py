"""A real `sandbox-aio serve` for tests that want one: a process of its own, on a port of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

API_KEY = "key-of-the-tests"
SANDBOX_AIO = Path(sys.executable).with_name("sandbox-aio")
"""The installed command, of the environment that runs the tests."""

READY_DEADLINE = 30.0
STOP_DEADLINE = 30.0
"""Seconds that a server may take to say its address, and to end after SIGTERM."""


@attrs.frozen(kw_only=True)
class Server:
    """A server that is up."""

    origin: str
    """`http://127.0.0.1:PORT`: what `LANGSMITH_ENDPOINT` is set to."""
    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path

    @property
    def endpoint(self) -> str:
        """The base of the control plane: what `api_endpoint` is set to."""
        return f"{self.origin}/api/v2/sandboxes"


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """Run `sandbox-aio serve` with its state and its log in `folder`; stop it by SIGTERM, and insist that it ends well.

    Raises:
        AssertionError: it was not ready, or did not end, within its deadline, or ended with another status than 0. The
            text ends with its log.
    """
    log, state_dir = folder / "serve.log", folder / "state"
    command: list[str | Path] = [SANDBOX_AIO, "serve", "--host", "127.0.0.1", "--port", "0", "--state-dir", state_dir]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--api-key", API_KEY, *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield Server(origin=_origin(process, log), process=process, state_dir=state_dir, log=log)
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_DEADLINE)
        assert status == 0, f"the server ended with status {status}:\n{log.read_text()}"
    finally:
        process.kill()
        process.wait()


def _origin(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + READY_DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        if address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return address[0]
        time.sleep(0.01)
    raise AssertionError(f"the server is not ready (status {process.returncode}):\n{log.read_text()}")
