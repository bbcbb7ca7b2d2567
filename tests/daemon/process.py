"""Start a daemon as a child process, and talk to it in plain HTTP and websocket."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import httpx
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SECRET = "secret-of-this-sandbox"
_HEADERS = {"x-sandbox-secret": SECRET}
_STOP_SECONDS = 10.0

_PROGRAM = """
import json, socket, sys
sys.path[:] = json.loads(sys.argv[3])
from sandbox_aio.daemon.main import run
listener = socket.socket(fileno=int(sys.argv[1]))
sys.path[:] = []
sys.meta_path[:] = []
sys.path_hooks[:] = []
run(listener, json.loads(sys.argv[2]))
"""
"""What a runtime does, without the isolation: after the import of `run`, nothing can be imported."""


@attrs.define
class Daemon:
    """A daemon that serves."""

    socket_path: str
    root: Path
    """Its files' root and its commands' work directory."""
    process: subprocess.Popen[bytes] | None = None
    """Set it to None after ending it on purpose."""
    port: int = 0
    """Where it listens at 127.0.0.1, instead of the path, if it does."""

    def http(self, **headers: str) -> httpx.AsyncClient:
        """Return an HTTP client that bears the secret."""
        transport = httpx.AsyncHTTPTransport(uds=self.socket_path)
        return httpx.AsyncClient(transport=transport, base_url="http://sandbox", headers={**_HEADERS, **headers})

    @contextlib.asynccontextmanager
    async def websocket(self, **options: Any) -> AsyncIterator[Session]:
        """Open `/execute/ws`."""
        options = {"additional_headers": _HEADERS, "compression": None, "max_size": 1 << 20, **options}
        async with unix_connect(self.socket_path, uri="ws://sandbox/execute/ws", **options) as connection:
            yield Session(connection)

    @contextlib.asynccontextmanager
    async def execute(self, command: str | None, **members: Any) -> AsyncIterator[Session]:
        """Open `/execute/ws` and start a command."""
        async with self.websocket() as session:
            await session.execute(command, **members)
            yield session

    async def run(self, command: str | None, **members: Any) -> Outcome:
        """Run a command to its end."""
        async with self.execute(command, **{"close_stdin": True, **members}) as session:
            return await session.outcome()

    def connect(self) -> socket.socket:
        """Return a plain connection."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(self.socket_path)
        return connection


def upgrade(daemon: Daemon) -> socket.socket:
    """Return a plain connection that has become a websocket."""
    connection = daemon.connect()
    head = f"GET /execute/ws HTTP/1.1\r\nHost: x\r\nx-sandbox-secret: {SECRET}\r\nUpgrade: websocket\r\n"
    head += "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    connection.sendall(head.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return connection


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """Return a frame as a client sends it, with a mask that changes nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


@attrs.define
class Outcome:
    """All that was said of a command."""

    command_id: str | None
    pid: int
    stdout: str
    stderr: str
    exit_code: int | None
    error: str | None
    error_type: str | None
    close_code: int | None


class Session:
    """One websocket, frame by frame."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, type: str, **members: Any) -> None:
        """Send a frame."""
        await self.connection.send(json.dumps({"type": type, **members}))

    async def execute(self, command: str | None, **members: Any) -> str:
        """Send `execute`; return the command's id."""
        command_id: str = members.setdefault("command_id", uuid.uuid4().hex)
        if command is not None:
            members["command"] = command
        await self.send("execute", **members)
        return command_id

    async def reconnect(self, command_id: str, stdout_offset: int = 0, stderr_offset: int = 0) -> None:
        """Send `reconnect`."""
        await self.send("reconnect", command_id=command_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)

    async def receive(self) -> dict[str, Any]:
        """Return the next frame."""
        frame: dict[str, Any] = json.loads(await self.connection.recv())
        return frame

    async def started(self) -> dict[str, Any]:
        """Return the next frame, which must be `started`."""
        frame = await self.receive()
        assert frame["type"] == "started", frame
        return frame

    async def output_until(self, text: str, stream: str = "stdout") -> str:
        """Receive until a stream's output holds `text`; return that output."""
        output = ""
        while text not in output:
            frame = await self.receive()
            assert frame["type"] in ("stdout", "stderr"), f"{frame} came before {text!r}, after {output!r}"
            output += frame["data"] if frame["type"] == stream else ""
        return output

    async def outcome(self) -> Outcome:
        """Receive until the connection is closed, and check the order of what came."""
        frames = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                frames.append(await self.receive())
        types = [frame["type"] for frame in frames]
        assert types[-1:] in (["exit"], ["error"]), types
        assert not {"exit", "error"} & set(types[:-1]), types
        output: dict[str, str] = {"stdout": "", "stderr": ""}
        for frame in frames:
            if frame["type"] in output:
                output[frame["type"]] += frame["data"]
        first, last = frames[0], frames[-1]
        return Outcome(
            command_id=first.get("command_id"),
            pid=first.get("pid", 0),
            stdout=output["stdout"],
            stderr=output["stderr"],
            exit_code=last.get("exit_code"),
            error=last.get("error"),
            error_type=last.get("error_type"),
            close_code=self.connection.close_code,
        )


@contextlib.contextmanager
def daemon_on_port(root: Path, **config: Any) -> Iterator[Daemon]:
    """Start a daemon that listens at a port of 127.0.0.1, as it would in a pod."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        port = listener.getsockname()[1]
        process = _start(root, listener, config)
    try:
        yield Daemon("", root, process, port)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(_STOP_SECONDS) == 0
        finally:
            process.kill()
            process.wait()


def _start(root: Path, listener: socket.socket, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    members = {"sandbox_id": "test", "secret": SECRET, "work_dir": str(root), "files_root": str(root), **config}
    arguments = [sys.executable, "-c", _PROGRAM, str(listener.fileno()), json.dumps(members), json.dumps(sys.path)]
    return subprocess.Popen(arguments, pass_fds=[listener.fileno()], env={})


@contextlib.contextmanager
def daemon_process(root: Path, **config: Any) -> Iterator[Daemon]:
    """Start a daemon below `root`, and end it by SIGTERM."""
    path = f"/tmp/sbd-{uuid.uuid4().hex[:12]}"  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4096)
        process = _start(root, listener, config)
    daemon = Daemon(path, root, process)
    try:
        yield daemon
        assert process.poll() is None or daemon.process is None, "the daemon died"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(_STOP_SECONDS) == 0
        finally:
            process.kill()
            process.wait()
            Path(path).unlink(missing_ok=True)  # from Python 3.13 on, the daemon may have done it


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, seconds: float = 5.0) -> None:
    """Wait for the end of a process that is no child of ours."""
    deadline = time.monotonic() + seconds
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still alive"
        time.sleep(0.005)
