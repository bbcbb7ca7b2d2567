"""One `ClientCommand` and the daemon's end of its present connection, moved by hand with literal times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from sandbox_aio.protocol.codec import decode_client_frame, encode_server_frame
from sandbox_aio.protocol.command import ClientCommand
from sandbox_aio.protocol.events import CommandFailed
from sandbox_aio.protocol.frames import Execute, Output, Reconnect, Started
from sandbox_aio.protocol.policy import CommandPolicy, Endpoint
from sandbox_aio.protocol.states import CommandState
from sandbox_aio.protocol.websocket import WebSocket
from tests.protocol.wire import CLOSE, PING, TEXT, sent

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandbox_aio.errors import SandboxClientError
    from sandbox_aio.protocol.events import CommandEvent
    from sandbox_aio.protocol.frames import ClientFrame, ServerFrame

EXECUTE = Execute(command="true", command_id="c", timeout_seconds=0)
RECONNECT = Reconnect(command_id="c", stdout_offset=5, stderr_offset=2)
STARTED = Started(command_id="c", pid=7)
ENDPOINT = Endpoint(host="box", target="/execute/ws", headers={"x-api-key": "k"})


def out(data: str, offset: int) -> Output:
    """Make a chunk of standard output."""
    return Output("stdout", data, offset)


class Conversation:
    """Begins at time 0. Every method is one thing that happens; `sent` is what the daemon got to read."""

    def __init__(
        self, opening: Execute | Reconnect = EXECUTE, *, chance: Callable[[], float] = lambda: 0.0, **options: Any
    ) -> None:
        fields = {field.name for field in attrs.fields(CommandPolicy)}
        policy = CommandPolicy(**{name: options.pop(name) for name in fields & options.keys()})
        self.command = ClientCommand(opening, ENDPOINT, policy=policy, chance=chance, **options)
        self.daemon: WebSocket | None = None
        self.command.begin(0.0)

    def accept(self, now: float) -> WebSocket:
        """Make a connection whose upgrade succeeds; the client has yet to read that it does."""
        self.command.connection_made(now)
        request = b"".join(self.command.bytes_to_send())
        lines = (line.partition(b":") for line in request.split(b"\r\n\r\n")[0].split(b"\r\n")[1:])
        headers = [(name, value.strip()) for name, _, value in lines]
        assert (b"x-api-key", b"k") in headers
        self.daemon = WebSocket.accept(headers=headers)
        return self.daemon

    def open(self, now: float = 0.0) -> list[ClientFrame]:
        """Make a connection whose upgrade succeeds; return what the daemon read of it."""
        self.accept(now)
        return self.flow(now)

    def start(self, now: float = 0.0) -> Conversation:
        """Open a connection and say `started`."""
        self.open(now)
        self.say(STARTED, now=now)
        self.command.events()
        return self

    def flow(self, now: float) -> list[ClientFrame]:
        """Let the client read what its daemon has sent; return the frames that it sends."""
        assert self.daemon is not None
        self.command.receive_bytes(b"".join(self.daemon.bytes_to_send()), now)
        return self.sent()

    def sent(self) -> list[ClientFrame]:
        """Drain the frames that the client sends, closes and pings apart."""
        frames: list[ClientFrame] = []
        for opcode, payload in sent(self.command):
            if opcode == TEXT:
                frame = decode_client_frame(payload)
                assert frame is not None
                frames.append(frame)
            else:
                assert opcode in (CLOSE, PING)
        return frames

    def say(self, *frames: ServerFrame, close: int | None = None, now: float = 0.0) -> list[ClientFrame]:
        """Let the daemon send frames, and perhaps close, all in one piece; return what the client answers."""
        assert self.daemon is not None
        for frame in frames:
            self.daemon.send_text(encode_server_frame(frame))
        if close is not None:
            self.daemon.close(now, close)
        return self.flow(now)

    def refuse(self, status: int, *headers: str, body: str = "", now: float = 0.0) -> None:
        """Make a connection whose upgrade is refused."""
        self.command.connection_made(now)
        self.command.bytes_to_send()
        lines = [f"HTTP/1.1 {status} No", *headers, f"content-length: {len(body)}", "", body]
        self.command.receive_bytes("\r\n".join(lines).encode(), now)

    def lose(self, now: float) -> None:
        """Break the connection."""
        self.command.receive_eof(now)

    def lose_often(self, times: int, now: float) -> None:
        """Lose the connection again and again, and be attached at the end, 8 seconds later."""
        for _ in range(times):
            self.lose(now)
            self.command.receive_timeout(now + 8.0)
            self.open(now + 8.0)

    def failure(self) -> SandboxClientError:
        """Return the error that the command ended with, which must be its only event."""
        (event,) = self.command.events()
        assert isinstance(event, CommandFailed)
        assert self.command.state is CommandState.FAILED
        assert self.command.deadline() is None
        assert self.command.wants_close
        return event.error

    def due(self, now: float) -> list[CommandEvent]:
        """Let the command do what is due, and not a moment before."""
        deadline = self.command.deadline()
        assert deadline is not None
        assert deadline <= now
        self.command.receive_timeout(deadline - 0.001)
        assert self.command.deadline() == deadline
        self.command.receive_timeout(now)
        return self.command.events()
