"""Both real roles, client and daemon, joined in memory by a wire that loses what it likes.

Nothing here says what either side sends: a process writes bytes, a caller reads text, and between them are
`ClientCommand`, two websockets, a `SessionConnection` and a `CommandSession`. `HYPOTHESIS_PROFILE=thorough` looks much
harder.
"""

from __future__ import annotations

import codecs

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from sandbox_aio.errors import SandboxOperationError
from sandbox_aio.protocol import session
from sandbox_aio.protocol.events import CommandExited
from sandbox_aio.protocol.frames import Execute, Exit, Reconnect, Stream
from sandbox_aio.protocol.policy import CommandPolicy
from sandbox_aio.protocol.session import CommandSession, InputCloseRequested, KillRequested, SpawnRequested
from sandbox_aio.protocol.session_table import SessionConnection, SessionTable
from sandbox_aio.protocol.states import WebSocketState
from sandbox_aio.protocol.websocket import Closed, WebSocket, WebSocketLimits
from tests.protocol.stateful.client_model import STREAMS, WAITING, ClientModel, Truth
from tests.protocol.stateful.client_rules import ClientRules, seldom
from tests.strategies import almost_utf8

FRAME_BYTES, INPUT_BYTES = session.FRAME_BYTES, session.INPUT_BYTES
streams = st.sampled_from(STREAMS)
CAPACITY = 4096
BLOCK = 64 * 1024
"""What a buffer may keep beyond its capacity, so more than this must be written before anything is lost."""
POLICY = CommandPolicy(
    max_pending_input_bytes=64,
    limits=WebSocketLimits(max_message_bytes=2**20, ping_interval=30.0, ping_timeout=60.0),
)


class Process:
    """A process, the driver of its session, and the truth about what it wrote."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.table = SessionTable(capacity=CAPACITY)
        self.truth = Truth()
        self.decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in STREAMS}
        self.session: CommandSession | None = None
        self.spawns = 0
        self.killed = False
        self.exit_code: int | None = None
        self.input = b""
        self.input_closed = False

    @property
    def running(self) -> bool:
        return self.spawns > 0 and self.exit_code is None

    def drive(self) -> None:
        """Do what the session asks for."""
        running = self.session
        if running is None:
            return
        while events := running.events():
            for event in events:
                if isinstance(event, SpawnRequested):
                    self.spawns += 1
                    self.input_closed = event.execute.close_stdin
                    running.process_started(7, self.now)
                elif isinstance(event, KillRequested):
                    self.killed = True
                    self.exit(137)
                elif isinstance(event, InputCloseRequested):
                    assert not running.input_pending
                    self.input_closed = True
        if running.is_over:
            for stream, decoder in self.decoders.items():
                self.truth.log[stream] += decoder.decode(b"", final=True).encode()
                decoder.reset()
        for stream in STREAMS:
            self.truth.kept_from[stream] = running.buffers[stream].start

    def write(self, stream: Stream, data: bytes) -> None:
        assert self.session is not None
        while data and self.session.wants_output(stream):
            piece, data = data[: self.session.read_bytes], data[self.session.read_bytes :]
            self.truth.log[stream] += self.decoders[stream].decode(piece).encode()
            self.session.receive_output(stream, piece, self.now)
        self.drive()

    def read_input(self, size: int) -> None:
        if self.session is not None:
            data = bytes(self.session.input_pending[:size])
            self.input += data
            self.session.input_written(len(data))
            self.drive()

    def exit(self, code: int) -> None:
        assert self.session is not None
        if self.exit_code is None:
            self.exit_code = code
            self.session.process_exited(code, self.now)
            for stream in STREAMS:
                self.session.receive_output_eof(stream, self.now)
            self.drive()

    def advance(self, now: float) -> None:
        self.now = now
        if self.session is not None:
            self.session.receive_timeout(now)
            self.drive()
        self.table.receive_timeout(now)


class DaemonConnection:
    """The daemon's end of one connection, as its driver moves it."""

    def __init__(self, process: Process, budget: int) -> None:
        self.process = process
        self.budget = budget
        self.websocket: WebSocket | None = None
        self.connection = SessionConnection(process.table, fallback_id="f", now=process.now)
        self.unread = b""
        self._head = b""

    def receive_bytes(self, data: bytes, now: float) -> None:
        if self.websocket is None:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
            headers = [(name, value.strip()) for name, _, value in lines]
            self.websocket = WebSocket.accept(headers=headers)
            data = rest
        self.unread += data
        self.read(now)

    def read(self, now: float) -> None:
        """Read on for as long as the command's input is not full."""
        assert self.websocket is not None
        while self.unread and self.connection.wants_input:
            data, self.unread = self.unread[:16], self.unread[16:]
            self.websocket.receive_bytes(data, now)
            for event in self.websocket.events():
                if isinstance(event, bytes):
                    self.connection.receive_message(event, now)
                else:
                    assert isinstance(event, Closed)
                    assert not event.violation
                    self.connection.receive_closed(now)
            if self.connection.session is not None:
                self.process.session = self.connection.session
            self.process.drive()

    def receive_eof(self, now: float) -> None:
        self.unread = b""
        if self.websocket is not None:
            self.websocket.receive_eof(now)
        self.connection.receive_closed(now)
        self.process.drive()

    def bytes_to_send(self, now: float) -> bytes:
        websocket = self.websocket
        if websocket is None:
            return b""
        self.read(now)
        if websocket.state is WebSocketState.OPEN:
            for message in self.connection.messages_to_send(self.budget, now):
                websocket.send_text(message)
            if self.connection.is_finished:
                websocket.close(now, 1000)
        self.process.drive()
        return b"".join(websocket.bytes_to_send())


class CommandAndSession(ClientRules):
    """The rules of the process and of the daemon; those of the rest are `ClientRules`."""

    budget = 1 << 20
    """Bytes of output that the daemon sends at a time."""

    @initialize(
        frame_bytes=st.sampled_from([8, FRAME_BYTES]),
        input_bytes=st.sampled_from([40, INPUT_BYTES]),
        budget=st.sampled_from([1, 1 << 20]),
    )
    def choose_sizes(self, frame_bytes: int, input_bytes: int, budget: int) -> None:
        """With small frames a cut is seldom between two of them; with large ones much can be written."""
        session.FRAME_BYTES, session.INPUT_BYTES = frame_bytes, input_bytes
        self.budget = budget

    def teardown(self) -> None:
        session.FRAME_BYTES, session.INPUT_BYTES = FRAME_BYTES, INPUT_BYTES

    def accept(self) -> DaemonConnection:
        return DaemonConnection(self.process, self.budget)

    def output(self) -> None:
        if self.process.running:
            self.process.write("stdout", b"o")

    def seen_kill(self) -> bool:
        return self.process.killed or self.process.exit_code is not None

    def unstick_kill(self) -> None:
        """A kill behind input that nobody reads is sent again, on another connection, after a second."""
        client = self.client
        for _ in range(3):
            peer = client.link.peer if client.link is not None else None
            if not isinstance(peer, DaemonConnection) or not peer.unread:
                break
            client.advance(client.policy.kill_patience)
            if client.command.state in WAITING:
                self.wait_until_due()
            if client.command.wants_connection:
                client.connect(self.accept)
            client.settle()

    def read_all_input(self) -> None:
        while True:
            self.process.read_input(1 << 20)
            self.client.settle()
            peer = self.client.link.peer if self.client.link is not None else None
            if not isinstance(peer, DaemonConnection) or not peer.unread or not peer.connection.wants_input:
                break
        self.process.read_input(1 << 20)
        if self.process.exit_code is not None:  # what came later went nowhere, as it should
            self.client.input_due = []

    def seen_end_of_input(self) -> bool:
        return self.process.input_closed or self.process.exit_code is not None

    def seen_input(self) -> str:
        return self.process.input.decode(errors="ignore")

    @initialize(limited=seldom, closed=seldom, doomed=seldom, settled=st.booleans())
    def begin(self, limited: bool, closed: bool, doomed: bool, settled: bool) -> None:
        execute = Execute(
            command="x",
            command_id="c",
            timeout_seconds=20 if limited else 0,
            close_stdin=closed,
            kill_on_disconnect=doomed,
        )
        now = self.client.now if hasattr(self, "client") else 1000.0
        self.process = Process(now)
        self.client = ClientModel(execute, self.process.truth, now=now, policy=POLICY)
        if limited:
            self.client.expected_failure = SandboxOperationError
        self.client.on_time = self.process.advance
        if settled:
            self.connect_and_settle()

    def running(self) -> bool:
        return self.process.running

    @precondition(running)
    @rule(stream=streams, data=almost_utf8(), times=st.sampled_from([1, 1, 1, 100]), flow=st.booleans())
    def write(self, stream: Stream, data: bytes, times: int, flow: bool) -> None:
        self.process.write(stream, data * times)
        if flow:
            self.client.flow_to_server()
            self.client.flow_to_client()

    @precondition(lambda self: self.running() and session.FRAME_BYTES == FRAME_BYTES)
    @rule(stream=streams, blocks=st.integers(1, 4))
    def write_much(self, stream: Stream, blocks: int) -> None:
        """Write more than is kept. With somebody attached who takes nothing this stops early, until he has stalled."""
        self.process.write(stream, "é".encode() * (blocks * BLOCK // 2 + 3))

    @precondition(running)
    @rule(size=st.integers(1, 100))
    def read_input(self, size: int) -> None:
        self.process.read_input(size)

    @precondition(running)
    @rule(code=st.integers(0, 255), really=st.booleans())
    def exit(self, code: int, really: bool) -> None:
        if really:
            self.process.exit(code)

    @precondition(lambda self: self.client.command.attached and not self.client.input_closed)
    @rule()
    def flood(self) -> None:
        """Write more than the command reads, and kill it."""
        self.send_input("x" * 90)
        self.client.settle()
        self.send_input("x" * 90)
        if not self.client.command.finished:
            self.kill("arrives")

    @precondition(lambda self: self.client.command.finished)
    @rule(limited=seldom, closed=seldom, doomed=seldom, anew=st.booleans(), overlap=st.integers(0, 5))
    def go_on(self, limited: bool, closed: bool, doomed: bool, anew: bool, overlap: int) -> None:
        """Attach again, with a new object, at or a little before the end of the old one; or run another command."""
        old, process = self.client, self.process
        if anew or not process.spawns:
            self.begin(limited, closed, doomed, True)
            return
        offsets = [process.truth.edge_before(stream, old.position[stream] - overlap) for stream in STREAMS]
        reconnect = Reconnect(command_id="c", stdout_offset=offsets[0], stderr_offset=offsets[1])
        self.read_all_input()
        self.client = ClientModel(
            reconnect, process.truth, now=old.now, policy=POLICY, input_closed=process.input_closed
        )
        assert process.session is not None
        if not isinstance(process.session.outcome, Exit):
            self.client.expected_failure = SandboxOperationError  # it may run out of time yet, or be forgotten
        self.client.on_time = process.advance
        process.killed, process.input = False, b""
        self.connect_and_settle()

    @invariant()
    def one_process_was_made(self) -> None:
        if hasattr(self, "process"):
            assert self.process.spawns <= 1

    @invariant()
    def an_exit_comes_after_all_output(self) -> None:
        if hasattr(self, "client") and isinstance(self.client.ended, CommandExited):
            assert self.client.ended == CommandExited(exit_code=self.process.exit_code or 0)
            for stream in STREAMS:
                assert self.client.position[stream] == len(self.process.truth.log[stream])


TestCommandAndSession = pytest.mark.timeout(1800)(CommandAndSession.TestCase)  # a failure takes long to make small
TestCommandAndSession.settings = settings(
    CommandAndSession.TestCase.settings, max_examples=3 * settings().max_examples // 2, stateful_step_count=50
)
