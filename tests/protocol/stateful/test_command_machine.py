"""One command, its client, and a daemon that is honest but unlucky: every rule of wire protocol, sections 3.5 to 3.12.

The daemon here is a fake that speaks real websocket frames. It resumes earlier than it was asked to, loses its oldest
output, says `started` again or not, refuses, closes, falls silent. `HYPOTHESIS_PROFILE=thorough` looks much harder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from sandbox_aio.errors import SandboxClientError, SandboxOperationError
from sandbox_aio.protocol.codec import decode_client_frame, encode_output, encode_server_frame
from sandbox_aio.protocol.events import CommandExited
from sandbox_aio.protocol.frames import (
    CloseStdin,
    ErrorReply,
    Execute,
    Exit,
    Input,
    Kill,
    Reconnect,
    Started,
    Stream,
)
from sandbox_aio.protocol.states import CommandState, WebSocketState
from sandbox_aio.protocol.websocket import WebSocket
from tests.protocol.stateful.client_model import STREAMS, ClientModel, Truth
from tests.protocol.stateful.client_rules import ClientRules, Refusing, mostly, seldom
from tests.strategies import texts

if TYPE_CHECKING:
    from sandbox_aio.protocol.frames import ClientFrame

streams = st.sampled_from(STREAMS)


class FakeDaemon:
    """One command as its daemon knows it."""

    def __init__(self, command_id: str) -> None:
        self.command_id = command_id
        self.truth = Truth()
        self.spawns = 0
        self.kills = 0
        self.input: list[str] = []
        self.input_closed = False
        self.exit_code: int | None = None
        self.overlap = 0
        """How much earlier than asked a replay begins, in characters."""
        self.announces = True
        """Whether `started` is said again to who attaches."""
        self.client: ClientModel


class FakeConnection:
    """The daemon's end of one connection."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon = daemon
        self.websocket: WebSocket | None = None
        self.offsets: dict[Stream, int] | None = None
        self.said_all = False
        self._head = b""

    @property
    def open(self) -> bool:
        return self.websocket is not None and self.websocket.state is WebSocketState.OPEN

    @property
    def attached(self) -> bool:
        return self.open and self.offsets is not None and not self.said_all

    def receive_bytes(self, data: bytes, now: float) -> None:
        if self.websocket is None:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
            headers = [(name, value.strip()) for name, _, value in lines]
            assert (b"x-api-key", b"k") in headers
            self.websocket = WebSocket.accept(headers=headers, trailing=rest)
        else:
            self.websocket.receive_bytes(data, now)
        for event in self.websocket.events():
            if isinstance(event, bytes) and self.open:
                frame = decode_client_frame(event)
                assert frame is not None
                self._receive(frame)

    def receive_eof(self, now: float) -> None:
        if self.websocket is not None:
            self.websocket.receive_eof(now)

    def bytes_to_send(self, now: float) -> bytes:
        return b"".join(self.websocket.bytes_to_send()) if self.websocket is not None else b""

    def _receive(self, frame: ClientFrame) -> None:
        daemon = self.daemon
        if isinstance(frame, Execute | Reconnect):
            assert self.offsets is None, "a connection attaches once"
            assert frame.command_id == daemon.command_id
            self._attach(frame)
            return
        assert self.offsets is not None
        if isinstance(frame, Kill):
            daemon.kills += 1
        elif isinstance(frame, CloseStdin):
            daemon.input_closed = True
        else:
            assert isinstance(frame, Input)
            assert not daemon.input_closed, "input after the end of input"
            daemon.input.append(frame.data)

    def _attach(self, frame: Execute | Reconnect) -> None:
        daemon, truth = self.daemon, self.daemon.truth
        asked: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        if isinstance(frame, Reconnect):
            asked = {"stdout": frame.stdout_offset, "stderr": frame.stderr_offset}
            assert asked == daemon.client.position
        elif not daemon.spawns:
            daemon.spawns += 1
            daemon.input_closed = frame.close_stdin
        self.offsets = {}
        for stream in STREAMS:
            before = [edge for edge in truth.edges(stream) if edge <= asked[stream]]
            begin = before[max(-1 - daemon.overlap, -len(before))]
            self.offsets[stream] = max(begin, truth.kept_from[stream])
        if isinstance(frame, Execute) or daemon.announces:
            self.say(Started(command_id=daemon.command_id, pid=7))

    def say(self, frame: Started | Exit | ErrorReply) -> None:
        assert self.websocket is not None
        self.websocket.send_text(encode_server_frame(frame))
        self.said_all = not isinstance(frame, Started)

    def send_output(self, stream: Stream, characters: int) -> None:
        """Send so much of what the client does not have yet, as far as it is kept."""
        assert self.websocket is not None
        assert self.offsets is not None
        truth = self.daemon.truth
        offset = max(self.offsets[stream], truth.kept_from[stream])
        data = truth.log[stream][offset:].decode()[:characters].encode()
        if data:
            self.websocket.send_text(encode_output(stream, data, offset))
            self.offsets[stream] = offset + len(data)

    @property
    def sent_all_output(self) -> bool:
        truth = self.daemon.truth
        return self.offsets is not None and all(self.offsets[stream] == len(truth.log[stream]) for stream in STREAMS)


class CommandMachine(ClientRules):
    """The rules: everything that a client, a daemon, a network and a clock may do to one command."""

    def __init__(self) -> None:
        super().__init__()
        self.daemon = FakeDaemon("c0")

    def accept(self) -> FakeConnection:
        return FakeConnection(self.daemon)

    def output(self) -> None:
        if self.running() and self.attached():
            self.produce("stdout", "o", 1, flow=True)

    def seen_kill(self) -> bool:
        return self.daemon.kills > 0

    def seen_end_of_input(self) -> bool:
        return self.daemon.input_closed

    def seen_input(self) -> str:
        return "".join(self.daemon.input)

    @property
    def connection(self) -> FakeConnection | None:
        peer = self.client.link.peer if self.client.link is not None else None
        return peer if isinstance(peer, FakeConnection) else None

    @initialize(limited=seldom, closed=seldom, settled=mostly)
    def begin(self, limited: bool, closed: bool, settled: bool) -> None:
        timeout = 60 if limited else 0
        execute = Execute(command="x", command_id="c0", timeout_seconds=timeout, close_stdin=closed)
        self.client = self.daemon.client = ClientModel(execute, self.daemon.truth, now=1000.0)
        if settled:
            self.connect_and_settle()

    # --- the process -------------------------------------------------------------------------------------------------

    def running(self) -> bool:
        return self.daemon.spawns > 0 and self.daemon.exit_code is None

    @precondition(running)
    @rule(stream=streams, text=texts(min_size=1, max_size=12), send=st.integers(1, 12), flow=mostly)
    def produce(self, stream: Stream, text: str, send: int, flow: bool) -> None:
        self.daemon.truth.log[stream] += text.encode()
        if self.attached():
            self.send_output(stream, [send], flow)

    @precondition(lambda self: self.running() and self.attached())
    @rule(
        stream=streams,
        text=texts(min_size=1, max_size=12),
        sizes=st.lists(st.integers(1, 4), max_size=4),
        to_client=st.integers(0, 150),
        overlap=st.integers(0, 6),
    )
    def produce_and_lose(self, stream: Stream, text: str, sizes: list[int], to_client: int, overlap: int) -> None:
        """Lose the connection amid output, attach again, and send the rest."""
        self.daemon.truth.log[stream] += text.encode()
        self.send_output(stream, sizes, flow=False)
        self.client.cut(0, to_client)
        self.daemon.overlap = overlap
        self.come_back()
        if self.attached():
            self.send_output(stream, [*sizes, 100], flow=True)

    @precondition(running)
    @rule(stream=streams, keep=st.integers(1, 6))
    def evict(self, stream: Stream, keep: int) -> None:
        """Lose the oldest output; the newest characters stay."""
        truth = self.daemon.truth
        edges = truth.edges(stream)
        truth.kept_from[stream] = max(truth.kept_from[stream], edges[max(-1 - keep, -len(edges))])

    # --- the daemon --------------------------------------------------------------------------------------------------

    def attached(self) -> bool:
        return self.connection is not None and self.connection.attached

    @precondition(attached)
    @rule(stream=streams, sizes=st.lists(st.integers(1, 10), min_size=1, max_size=3), flow=st.booleans())
    def send_output(self, stream: Stream, sizes: list[int], flow: bool) -> None:
        assert self.connection is not None
        for size in sizes:
            self.connection.send_output(stream, size)
        self.client.flow_to_server()
        if flow:
            self.client.flow_to_client()

    @precondition(attached)
    @rule(exit_code=st.integers(0, 255), code=st.sampled_from([None, 1000]), flow=st.booleans())
    def exit(self, exit_code: int, code: int | None, flow: bool) -> None:
        assert self.connection is not None
        assert self.connection.websocket is not None
        if self.daemon.exit_code is None:
            self.daemon.exit_code = exit_code
        for stream in STREAMS:
            self.connection.send_output(stream, 1000)
        assert self.connection.sent_all_output
        self.connection.say(Exit(exit_code=self.daemon.exit_code))
        if code is not None:
            self.connection.websocket.close(self.client.now, code)
        self.client.flow_to_server()
        if flow:
            self.client.flow_to_client()

    @precondition(lambda self: self.connection is not None and self.connection.open)
    @rule(code=st.sampled_from([1000, 1001, 1011]))
    def close(self, code: int) -> None:
        assert self.connection is not None
        assert self.connection.websocket is not None
        self.connection.websocket.close(self.client.now, code)
        self.client.flow_to_server()

    @rule(overlap=st.integers(0, 10), announces=st.booleans())
    def be_sloppy(self, overlap: int, announces: bool) -> None:
        self.daemon.overlap, self.daemon.announces = overlap, announces

    @precondition(ClientRules.unfinished)
    @rule(how=st.sampled_from(["release", "error", "refusal"]), status=st.sampled_from([302, 400, 401, 403, 404]))
    def end(self, how: str, status: int) -> None:
        """Let go, or meet an end that no other try can mend."""
        client, command = self.client, self.client.command
        if how == "release":
            client.act(lambda: command.release(client.now))
            assert client.ended is None
        elif how == "error" and self.attached():
            assert self.connection is not None
            client.expected_failure = SandboxOperationError
            self.connection.say(ErrorReply(error="sorry", error_type="CommandError"))
            client.flow_to_server()
        elif how == "refusal" and self.wants_connection():
            was_starting = command.state is CommandState.CONNECTING
            client.expected_failure = SandboxClientError
            client.connect(lambda: Refusing(f"HTTP/1.1 {status} No\r\n\r\n"))
            client.settle()
            client.act(lambda: command.receive_eof(client.now))
            assert command.state is CommandState.FAILED
            assert command.websocket_missing == (status == 404 and was_starting)

    @precondition(lambda self: self.client.command.finished)
    @rule(limited=seldom, closed=seldom, settled=mostly, anew=st.booleans())
    def go_on(self, limited: bool, closed: bool, settled: bool, anew: bool) -> None:
        """Attach again, with a new object, where the old one ended; or run another command."""
        old = self.client
        if anew or not self.daemon.spawns:
            self.daemon = FakeDaemon("c0")
            self.begin(limited, closed, settled)
            return
        reconnect = Reconnect(
            command_id="c0", stdout_offset=old.position["stdout"], stderr_offset=old.position["stderr"]
        )
        self.client = self.daemon.client = ClientModel(reconnect, self.daemon.truth, now=old.now)
        self.daemon.kills, self.daemon.input, self.daemon.input_closed = 0, [], False
        self.connect_and_settle()

    # --- what is always true -----------------------------------------------------------------------------------------

    @invariant()
    def the_command_was_started_once(self) -> None:
        assert self.daemon.spawns <= 1

    @invariant()
    def an_exit_comes_after_all_output(self) -> None:
        if hasattr(self, "client") and isinstance(self.client.ended, CommandExited):
            assert self.client.ended.exit_code == self.daemon.exit_code
            for stream in STREAMS:
                assert self.client.position[stream] == len(self.daemon.truth.log[stream])


TestCommandMachine = pytest.mark.timeout(1800)(CommandMachine.TestCase)  # a failure takes long to make small
TestCommandMachine.settings = settings(
    CommandMachine.TestCase.settings, max_examples=2 * settings().max_examples, stateful_step_count=50
)
