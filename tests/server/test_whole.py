"""Whole servers as processes of their own, over the `namespaces` runtime: they begin, serve, end, and leave nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = [sys.executable, "-c", "import sys; from sandbox_aio.cli import main; sys.exit(main())"]

TIMEOUT = 20.0
"""Seconds in which anything awaited here happens, on a busy machine."""


def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it is so."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT:g} s: {what}"
        time.sleep(0.02)


def line_of(stream: IO[bytes] | None) -> str:
    assert stream is not None
    return stream.readline().decode()


def holders(state_dir: Path) -> list[str]:
    """What still knows of a state directory: processes with mounts from it or with its name, and mounts of our own."""
    needle = str(state_dir).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if needle in (process / "mountinfo").read_bytes() or needle in (process / "cmdline").read_bytes():
                found.append(f"{process.name}: {(process / 'cmdline').read_bytes()!r}")
    return found


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Short, since the paths of sockets are; and on a disk."""
    path = Path(tempfile.mkdtemp(prefix="t-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def served(state_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    command = ["serve", "--port", "0", "--state-dir", str(state_dir), "--api-key", "k", "--log-level", "warning"]
    process = subprocess.Popen([*PROGRAM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            line = line_of(process.stdout)
            assert line.startswith("listening on http://127.0.0.1:"), (line, line_of(process.stderr))
            url = line.split()[2].rstrip(";")
            with httpx.Client(base_url=f"{url}/v2/sandboxes", headers={"x-api-key": "k"}, timeout=TIMEOUT) as client:
                yield process, client
        finally:
            process.kill()


@contextlib.contextmanager
def embedded() -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    command = [sys.executable, "-m", "sandbox_aio.server.embedded_main"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        try:
            ready = json.loads(line_of(process.stdout))
            headers = {"x-api-key": ready["api_key"]}
            with httpx.Client(base_url=ready["endpoint"], headers=headers, timeout=TIMEOUT) as client:
                yield process, client
        finally:
            process.kill()


def execute(client: httpx.Client, box: str, command: str) -> dict[str, object]:
    answer = client.post(f"/{box}/execute", json={"command": command, "timeout": 10})
    assert answer.status_code == 200, answer.text
    result: dict[str, object] = answer.json()
    return result


def create(client: httpx.Client) -> str:
    answer = client.post("/boxes", json={})
    assert answer.status_code == 201, answer.text
    name: str = answer.json()["name"]
    return name


def state_of(process: subprocess.Popen[bytes]) -> Path:
    """The directory that an embedded server made: the first whose lock it took. It may be removing others."""
    locks = {
        int(entry.name): link
        for entry in Path(f"/proc/{process.pid}/fd").iterdir()
        if (link := entry.readlink()).name.startswith(f"saio-{os.getuid()}-")
    }
    return locks[min(locks)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_serves_and_a_signal_leaves_nothing(state_dir: Path, number: signal.Signals) -> None:
    with served(state_dir) as (process, client):
        box = create(client)
        assert execute(client, box, "echo hi") == {"stdout": "hi\n", "stderr": "", "exit_code": 0}
        client.post(f"/boxes/{box}/stop")
        assert execute(client, box, "hostname")["stdout"] == f"{box}\n"  # It woke.
        process.send_signal(number)
        assert process.wait(TIMEOUT) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    until(lambda: not holders(state_dir), f"nothing knows of {state_dir}: {holders(state_dir)}")
    left = [path for path in state_dir.rglob("*") if "sandboxes" in path.parts and path.name != "sandboxes"]
    assert left == []


def test_what_a_killed_server_leaves_the_next_one_removes(state_dir: Path) -> None:
    with served(state_dir) as (process, client):
        box = create(client)
        process.kill()
        process.wait()
    with served(state_dir) as (process, client):
        assert client.get(f"/boxes/{box}").status_code == 404
        create(client)
        process.terminate()
        assert process.wait(TIMEOUT) == 0
    until(lambda: not holders(state_dir), f"nothing knows of {state_dir}")


def test_an_embedded_server_ends_with_its_lifeline() -> None:
    with embedded() as (process, client):
        state = state_of(process)
        assert state.stat().st_mode & 0o777 == 0o700
        box = create(client)
        assert execute(client, box, "echo hi")["stdout"] == "hi\n"
        assert client.get("/boxes", headers={"x-api-key": "guess"}).status_code == 401
        for harmless in (signal.SIGINT, signal.SIGHUP):
            process.send_signal(harmless)
        assert client.get("/boxes").status_code == 200
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert not state.exists()
    until(lambda: not holders(state), "nothing knows of it")


OWNER = """
import subprocess, sys, time
server = subprocess.Popen(
    [sys.executable, "-m", "sandbox_aio.server.embedded_main"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
print(server.pid, server.stdout.readline().decode(), flush=True)
time.sleep(60)
"""


@pytest.mark.leaks  # Its orphan is a child of whoever reaps here.
def test_an_embedded_server_ends_with_a_killed_owner() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as owner:
        pid, _, line = line_of(owner.stdout).partition(" ")
        ready = json.loads(line)
        with httpx.Client(base_url=ready["endpoint"], headers={"x-api-key": ready["api_key"]}) as client:
            create(client)
        owner.kill()
    until(lambda: _gone(int(pid)), "the server ended")


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_a_killed_embedded_server_leaves_the_next_one_removes() -> None:
    with embedded() as (process, client):
        state = state_of(process)
        create(client)
        process.kill()
        process.wait()
    with embedded() as (process, client):
        until(lambda: not state.exists() and not holders(state), f"{state} was removed")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0
