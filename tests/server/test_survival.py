"""A server that keeps its sandboxes: stopped or killed, and started again on the same directory. A real runtime."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sandbox_aio import ResourceNotFoundError, SandboxClient
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COUNTING = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); sleep 0.001; done; sleep 1; echo end"


@contextmanager
def keeping(folder: Path) -> Iterator[Server]:
    """A server that keeps what it has."""
    with serving(folder, "--no-ephemeral") as server:
        yield server


@contextmanager
def client_of(server: Server) -> Iterator[SandboxClient]:
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
        yield client


def kill(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


@contextmanager
def killed(folder: Path) -> Iterator[Server]:
    """A server that keeps what it has, and is killed at the end of the block."""
    manager = keeping(folder)
    server = manager.__enter__()
    try:
        yield server
    finally:
        kill(server)
        with pytest.raises(AssertionError, match="status -9"):
            manager.__exit__(None, None, None)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where servers keep what they have; in the end, one that keeps nothing takes everything away."""
    yield tmp_path
    for path in (tmp_path / "state").glob("server.db*"):
        path.unlink()
    with serving(tmp_path):
        pass
    assert not (tmp_path / "state/zygote.lock").exists()


@pytest.mark.parametrize("gently", [True, False])
def test_commands_run_on_and_no_byte_is_lost(folder: Path, gently: bool) -> None:
    with keeping(folder) if gently else killed(folder) as first, client_of(first) as client:
        sandbox = client.create_sandbox(name="kept")
        handle = sandbox.run(COUNTING, wait=False, timeout=0)
        start = next(iter(handle)).data
        command, offset = handle.command_id, len(start)
        assert command is not None
    with keeping(folder) as second, client_of(second) as client:
        sandbox = client.get_sandbox("kept")
        assert sandbox.status == "ready"
        rest = sandbox.reconnect(command, stdout_offset=offset).result
        assert start + rest.stdout == "".join(f"line {number}\n" for number in range(2000)) + "end\n"
        sandbox.delete()


def test_what_was_stopped_or_changed_is_as_it_was(folder: Path) -> None:
    rules = {
        "rules": [
            {"name": "r", "match_hosts": ["a.example"], "headers": [{"name": "X", "type": "opaque", "value": "s"}]}
        ]
    }
    with killed(folder) as first, client_of(first) as client:
        client.create_sandbox(name="stopped", labels={"a": "b"}, proxy_config=rules).write("/root/x", "kept")
        client.stop_sandbox("stopped")
        client.create_sandbox(name="gone")
        client.delete_sandbox("gone")
    with keeping(folder) as second, client_of(second) as client:
        with pytest.raises(ResourceNotFoundError):
            client.get_sandbox("gone")
        sandbox = client.get_sandbox("stopped")
        assert (sandbox.status, sandbox.labels) == ("stopped", {"a": "b"})
        assert sandbox.read("/root/x") == b"kept"
        assert sandbox.run("echo $HTTP_PROXY").stdout.strip()
        sandbox.delete()


@pytest.mark.parametrize("pause", [0.0, 0.003, 0.01, 0.02, 0.04])
def test_one_that_is_killed_while_sandboxes_come_and_go_leaves_no_orphan(folder: Path, pause: float) -> None:
    with killed(folder) as first, client_of(first) as client:
        client.create_sandbox(name="old")
        client.create_sandbox(name="new", wait_for_ready=False)
        time.sleep(pause)
    with keeping(folder) as second, client_of(second) as client:
        for sandbox in client.list_sandboxes():
            assert client.wait_for_sandbox(sandbox.name, timeout=20).run("echo yes").stdout == "yes\n"
            sandbox.delete()
        assert list((second.state_dir / "sandboxes").iterdir()) == []
