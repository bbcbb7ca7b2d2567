"""A runtime driven from plain tests: an event loop of its own in a thread, and sandboxes that run a shell command
each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from sandbox_aio.runtimes.base import Capabilities, DaemonAddress, SandboxSpec
from sandbox_aio.runtimes.namespaces import HOST_SNAPSHOT_ID, NamespacesRuntime

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

ENTRY = "tests.runtimes.shell_daemon:run"
TIMEOUT = 50.0
T = TypeVar("T")


def spec(**changes: Any) -> SandboxSpec:
    """A sandbox of the snapshot `host` with a new id."""
    members: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "base": HOST_SNAPSHOT_ID,
        "hostname": "box",
        "secret": "a secret",
        "env_vars": {"PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"},
    }
    return SandboxSpec(**{**members, **changes})


def ask(address: DaemonAddress, **request: Any) -> dict[str, Any]:
    """Send one request to a shell daemon and return its answer; an empty one if it ended instead."""
    assert address.path is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(address.path)
        with connection.makefile("rwb") as stream:
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
            line = stream.readline()
    answer: dict[str, Any] = json.loads(line) if line else {}
    return answer


class Sandbox:
    """A running sandbox."""

    def __init__(self, machine: Machine, id: str, address: DaemonAddress) -> None:
        self.machine = machine
        self.id = id
        self.address = address

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask process 1 something."""
        return ask(self.address, **request)

    def attempt(self, script: str, **options: Any) -> tuple[int, str]:
        """Run a shell script; return its exit code and its output, both streams together."""
        answer = self.ask(argv=["/bin/sh", "-c", script], **options)
        return answer["code"], answer["output"]

    def sh(self, script: str, **options: Any) -> str:
        """Run a shell script that must succeed, and return its output without the last newline."""
        code, output = self.attempt(script, **options)
        assert code == 0, f"{script!r} failed with {code}: {output}"
        return output.rstrip("\n")

    def python(self, source: str) -> str:
        """Run a Python program that must succeed, and return its output without the last newline."""
        answer = self.ask(argv=["python3", "-c", source], env={})
        assert answer["code"] == 0, answer["output"]
        return str(answer["output"]).rstrip("\n")


class Machine:
    """One runtime. `exits` collects what it says about sandboxes that ended by themselves."""

    def __init__(self, state_dir: Path, *, ephemeral: bool = True, **options: Any) -> None:
        self.state_dir = state_dir
        self.exits: list[tuple[str, str]] = []
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(4)
        self._loop.set_default_executor(self._pool)
        self._thread = threading.Thread(target=self._loop.run_forever, name="machine")
        self._thread.start()
        together = threading.Barrier(5)  # Every thread of the pool exists before a test counts threads.
        for _ in range(4):
            self._pool.submit(together.wait)
        together.wait()
        self.runtime = NamespacesRuntime(state_dir, ephemeral=ephemeral, **{"daemon_entry": ENTRY, **options})

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the runtime's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT)

    def open(self) -> Capabilities:
        """Open the runtime."""
        return self.run(self.runtime.open(lambda id, reason: self.exits.append((id, reason))))

    @contextlib.contextmanager
    def sandbox(self, **changes: Any) -> Iterator[Sandbox]:
        """Create and start a sandbox, and destroy it in the end."""
        wanted = spec(**changes)
        self.run(self.runtime.create(wanted))
        try:
            yield Sandbox(self, wanted.id, self.run(self.runtime.start(wanted.id)))
        finally:
            self.run(self.runtime.destroy(wanted.id))

    def halt(self) -> None:
        """End the event loop and its threads; the runtime must be closed, or is to be left as it is."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._pool.shutdown()
        self._loop.close()


@contextlib.contextmanager
def machine(state_dir: Path, **options: Any) -> Iterator[Machine]:
    """An open runtime, closed with everything in the end."""
    made = Machine(state_dir, **options)
    try:
        made.open()
        try:
            yield made
        finally:
            made.run(made.runtime.aclose(destroy=True))
    finally:
        made.halt()
