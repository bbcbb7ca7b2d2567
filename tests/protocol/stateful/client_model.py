"""A driver without I/O around one `ClientCommand`, and what must be true of the command after every single call.

The model knows the true output (`Truth`) and the rules of wire protocol, sections 3.5 to 3.12, in its own words: how
often a connection may be lost, when the next one is due, which failure is allowed when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from sandbox_aio.errors import (
    CommandTimeoutError,
    LocalProtocolError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
)
from sandbox_aio.models import OutputChunk, OutputGap
from sandbox_aio.protocol.command import ClientCommand
from sandbox_aio.protocol.events import CommandExited, CommandFailed, CommandStarted
from sandbox_aio.protocol.frames import Execute, Reconnect, Stream
from sandbox_aio.protocol.policy import CommandPolicy, Endpoint
from sandbox_aio.protocol.states import CommandState
from sandbox_aio.protocol.websocket import WebSocket, WebSocketLimits

if TYPE_CHECKING:
    from collections.abc import Callable

STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
ENDPOINT = Endpoint(host="box", target="/execute/ws", headers={"x-api-key": "k"})
POLICY = CommandPolicy(
    max_pending_input_bytes=64, limits=WebSocketLimits(max_message_bytes=4096, ping_interval=30.0, ping_timeout=60.0)
)
ALLOWED_LOSSES = 5
HEALTHY_SECONDS = 30.0
WAITING = frozenset({CommandState.WAITING, CommandState.DETACHED})


class Truth:
    """What a command really wrote, and what its daemon still keeps of it."""

    def __init__(self) -> None:
        self.log: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        self.kept_from: dict[Stream, int] = {"stdout": 0, "stderr": 0}

    def edges(self, stream: Stream) -> list[int]:
        """Return the offsets between two characters."""
        log = self.log[stream]
        return [index for index in range(len(log) + 1) if index == len(log) or log[index] & 0xC0 != 0x80]

    def edge_before(self, stream: Stream, offset: int) -> int:
        """Return the last offset between two characters that is not after this one."""
        log, offset = self.log[stream], max(offset, 0)
        while offset < len(log) and log[offset] & 0xC0 == 0x80:
            offset -= 1
        return offset


class Peer(Protocol):
    """The daemon's end of one connection."""

    def receive_bytes(self, data: bytes, now: float) -> None: ...

    def receive_eof(self, now: float) -> None: ...

    def bytes_to_send(self, now: float) -> bytes: ...


class Link:
    """One connection with a lossy wire: bytes in flight in both directions."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.to_server = b""
        self.to_client = b""


class ClientModel:
    """One command and the model of it. `act` makes a call and checks everything; the rest are the calls."""

    def __init__(
        self,
        opening: Execute | Reconnect,
        truth: Truth,
        now: float,
        *,
        policy: CommandPolicy = POLICY,
        input_closed: bool = False,
    ) -> None:
        self.truth = truth
        self.policy = policy
        self.now = now
        self.opening = opening
        self.command = ClientCommand(opening, ENDPOINT, policy=policy, input_closed=input_closed)
        self.link: Link | None = None
        self.on_time: Callable[[float], None] = lambda now: None
        """Told whenever time has passed."""
        self.position: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        if isinstance(opening, Reconnect):
            self.position = {"stdout": opening.stdout_offset, "stderr": opening.stderr_offset}
        self.lost_bytes: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self.ended: CommandExited | CommandFailed | None = None
        self.begun_at = now
        self.started_at: float | None = None
        self.attached_at: float | None = None
        self.opening_since: float | None = None
        self.killed_at: float | None = None
        self.connect_at = now
        self.retry_after: float | None = None
        self.losses = 0
        self.expected_failure: type[SandboxClientError] | None = None
        self.input_due: list[str] = []
        self.input_closed = opening.close_stdin if isinstance(opening, Execute) else input_closed
        self.act(lambda: self.command.begin(now))

    # --- the calls of a driver ---------------------------------------------------------------------------------------

    def act(self, call: Callable[[], None]) -> None:
        """Make one call, take the events, move bytes to the wire, and check the command against the model."""
        before, attached = self.command.state, self.command.attached
        call()
        self._take_events()
        self._check_step(before, attached)
        if self.link is not None:
            self.link.to_server += b"".join(self.command.bytes_to_send())
            if self.command.wants_close:
                link, self.link = self.link, None
                link.peer.receive_bytes(link.to_server, self.now)
                link.peer.receive_eof(self.now)

    def connect(self, make_peer: Callable[[], Peer]) -> None:
        """Open the connection that the command wants."""
        self.link = Link(make_peer())
        self.act(lambda: self.command.connection_made(self.now))

    def fail_to_connect(self) -> None:
        """Open no connection."""
        error = SandboxConnectTimeoutError("no route")
        self.act(lambda: self.command.connection_failed(error, self.now))

    def flow_to_server(self) -> bool:
        """Let the daemon read all that is in flight; say whether there was anything."""
        link = self.link
        if link is None:
            return False
        data, link.to_server = link.to_server, b""
        if data:
            link.peer.receive_bytes(data, self.now)
        more = link.peer.bytes_to_send(self.now)
        link.to_client += more
        return bool(data or more)

    def flow_to_client(self, size: int | None = None) -> bool:
        """Let the client read the first `size` bytes in flight, or all; say whether there were any."""
        link = self.link
        if link is None or not link.to_client:
            return False
        data, link.to_client = link.to_client[:size], link.to_client[len(link.to_client[:size]) :]
        self.act(lambda: self.command.receive_bytes(data, self.now))
        return bool(data)

    def settle(self) -> None:
        """Let everything flow until nothing is in flight."""
        while self.flow_to_server() | self.flow_to_client():
            pass

    def cut(self, to_server: int, to_client: int) -> None:
        """Break the connection: of what is in flight each side still gets so many bytes."""
        link = self.link
        assert link is not None
        link.peer.receive_bytes(link.to_server[:to_server], self.now)
        link.peer.receive_eof(self.now)
        link.to_server = b""
        if to_client:
            self.flow_to_client(to_client)
        if self.link is link:
            self.act(lambda: self.command.receive_eof(self.now))
        assert self.link is not link

    def advance(self, seconds: float) -> None:
        """Let time pass, and let the command do what is due at each instant."""
        until = self.now + seconds
        for _ in range(200):
            deadline = self.command.deadline()
            if deadline is None or deadline > until:
                break
            self.now = max(self.now, deadline)
            self.on_time(self.now)
            self.act(lambda: self.command.receive_timeout(self.now))
        else:
            raise AssertionError(f"the timer spins at {self.now}, in state {self.command.state}")
        self.now = until
        self.on_time(until)
        if self.command.state in WAITING:
            assert self.now < self.connect_at
        self.check_deadlines()

    # --- the wishes of a caller --------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill the command."""
        if self.killed_at is None:
            self.killed_at = self.now
        self.act(lambda: self.command.kill(self.now))

    def send_input(self, text: str) -> None:
        """Send input; what would not fit while detached must be refused."""
        kept = sum(len(item.encode()) for item in [*self.input_due, text])
        if self.input_closed or (kept > self.policy.max_pending_input_bytes and not self.command.attached):
            with pytest.raises(LocalProtocolError):
                self.command.send_input(text)
            return
        self.input_due.append(text)
        self.act(lambda: self.command.send_input(text))

    def close_input(self) -> None:
        """Close the input."""
        self.input_closed = True
        self.act(self.command.close_input)

    # --- what must be true -------------------------------------------------------------------------------------------

    def _take_events(self) -> None:
        for event in self.command.events():
            assert self.ended is None, f"{event} came after {self.ended}"
            if isinstance(event, OutputChunk):
                self._check_output(event)
                self.losses = 0
            elif isinstance(event, CommandStarted):
                assert self.started_at is None
                assert isinstance(self.opening, Execute)
                self.started_at = self.now
                self.losses = 0
            else:
                self.ended = event
        assert self.command.events() == []

    def _check_output(self, event: OutputChunk) -> None:
        stream = event.stream
        assert event.offset == self.position[stream]
        if isinstance(event, OutputGap):
            assert event.data == ""
            assert event.missing_bytes > 0
            self.lost_bytes[stream] += event.missing_bytes
            self.position[stream] += event.missing_bytes
            assert self.position[stream] <= self.truth.kept_from[stream], "a gap over bytes that were not lost"
        else:
            data = event.data.encode()
            assert data
            self.position[stream] += len(data)
            assert self.truth.log[stream][event.offset : self.position[stream]] == data

    def _check_step(self, before: CommandState, attached: bool) -> None:
        command, state = self.command, self.command.state
        for stream in STREAMS:
            assert command.offset(stream) == self.position[stream]
            assert command.missing(stream) == self.lost_bytes[stream]
        lost = state in WAITING and before not in WAITING
        if (lost or state is CommandState.FAILED) and attached and self.attached_at is not None:
            if self.now >= self.attached_at + HEALTHY_SECONDS:
                self.losses = 0
        if lost:
            self.losses += 1
            assert self.losses <= ALLOWED_LOSSES
            self.connect_at = self.now + self._delay(resuming=state is CommandState.DETACHED)
            if attached:
                self.input_due = []  # it was sent, and may have arrived or not
        if before in WAITING and state not in WAITING and not command.finished:
            assert self.now >= self.connect_at
        self._note_times(attached)
        if state is CommandState.FAILED and before is not CommandState.FAILED:
            assert isinstance(self.ended, CommandFailed)
            self._check_failure(self.ended.error)
        if command.finished:
            self._check_the_end()

    def _note_times(self, attached: bool) -> None:
        if self.command.state not in (CommandState.CONNECTING, CommandState.REATTACHING):
            self.opening_since = None
        elif self.opening_since is None:
            self.opening_since = self.now
        if not self.command.attached:
            self.attached_at = None
        elif not attached or self.attached_at is None:
            self.attached_at = self.now

    def _delay(self, *, resuming: bool) -> float:
        asked, self.retry_after = self.retry_after, None
        if asked is not None:
            return min(asked, 120.0)
        number = self.losses - 1 if resuming else self.losses
        return min(0.5 * 2 ** (number - 1), 8.0) if number else 0.0

    def _check_failure(self, error: SandboxClientError) -> None:
        if self.expected_failure is not None and isinstance(error, self.expected_failure):
            return
        if self.killed_at is not None and self.now >= self.killed_at + 10.0:
            assert type(error) is SandboxConnectionError
        elif isinstance(error, CommandTimeoutError):
            assert isinstance(self.opening, Execute)
            assert self.started_at is not None
            assert self.opening.timeout_seconds
            assert self.now >= self.started_at + self.opening.timeout_seconds + 30.0
        elif isinstance(error, SandboxConnectTimeoutError):
            assert self.started_at is None
            assert self.now >= self.begun_at + 120.0
        else:
            assert type(error) is SandboxConnectionError
            assert self.losses == ALLOWED_LOSSES, f"given up after {self.losses} losses: {error}"

    def check_deadlines(self) -> None:
        """Say that everything that has a bound in time keeps it."""
        if self.command.finished:
            return
        assert self.opening_since is None or self.now < self.opening_since + 30.0
        assert self.killed_at is None or self.now < self.killed_at + 10.0
        if isinstance(self.opening, Execute):
            if self.started_at is None:
                assert self.now < self.begun_at + 120.0
            elif self.opening.timeout_seconds:
                assert self.now < self.started_at + self.opening.timeout_seconds + 30.0

    def _check_the_end(self) -> None:
        command, before = self.command, self.command.state
        assert not command.wants_connection
        assert command.wants_close
        assert command.deadline() is None
        intents: list[Callable[[], None]] = [
            lambda: command.kill(self.now),
            lambda: command.send_input("x"),
            command.close_input,
            lambda: command.release(self.now),
            lambda: command.begin(self.now),
            lambda: command.connection_made(self.now),
        ]
        for intent in intents:
            with pytest.raises(LocalProtocolError):
                intent()
        command.receive_bytes(b"\x81\0", self.now)
        command.receive_eof(self.now)
        command.receive_timeout(self.now)
        command.connection_failed(SandboxConnectionError("late"), self.now)
        assert command.state is before
        assert command.events() == []

    def check_bounds(self) -> None:
        """Say that nothing has grown beyond its limit."""
        websocket: WebSocket | None = self.command._websocket
        assert self.command._intents._input_bytes <= self.policy.max_pending_input_bytes
        if websocket is not None:
            assert len(websocket._tail) + sum(map(len, websocket._parts)) + len(websocket._message or b"") <= (
                2 * self.policy.limits.max_message_bytes
            )
