"""Every command that the daemon knows, and the connections to them (wire protocol, sections 3.3, 3.8).

A command is started by the first `execute` that bears its id; every later one attaches to it. A command that is over
is kept for its TTL, or until those that ended after it need the room; then its id is remembered for a while, so that
a client can be told that the session expired rather than that the command never was.
"""

from __future__ import annotations

import heapq
import math

import attrs

from .codec import CodecError, decode_client_frame, encode_output, encode_server_frame
from .frames import ClientFrame, CloseStdin, ErrorReply, Execute, Input, Kill, Reconnect, Resize, Started
from .output_buffer import DEFAULT_CAPACITY
from .session import Attachment, CommandSession
from .states import ATTACHMENT_TRANSITIONS, AttachmentInput, AttachmentState, step

__all__ = ["SessionConnection", "SessionTable"]

OPENING_SECONDS = 120.0
"""How long a connection may stay open without an `execute` or a `reconnect`."""


def _fault_in(execute: Execute) -> str | None:
    """Return a sentence that says why a command cannot be started as asked; None if it can be tried."""
    if execute.command is None and not execute.pty:
        return "a command is needed, unless pty is true"
    if execute.timeout_seconds < 0:
        return f"timeout_seconds must not be negative, and is {execute.timeout_seconds:g}"
    if execute.run_config and (execute.env or execute.cwd):
        return "run_config cannot be given together with env or cwd: put them into run_config as env_vars and work_dir"
    if execute.command_id == "":
        return "command_id must not be empty"
    return None


class SessionTable:
    """The daemon's commands by id. One clock serves all calls."""

    def __init__(
        self,
        *,
        capacity: int = DEFAULT_CAPACITY,
        max_running: int = 4096,
        max_finished: int = 1024,
        max_finished_bytes: int = 64 << 20,
        max_tombstones: int = 4096,
    ) -> None:
        """`capacity` is the bytes kept of each stream of a command; the other bounds hold for all commands that are
        over, together.
        """
        self._capacity = capacity
        self._max_running = max_running
        self._max_finished = max_finished
        self._max_finished_bytes = max_finished_bytes
        self._max_tombstones = max_tombstones
        self._sessions: dict[str, CommandSession] = {}
        self._finished: dict[str, CommandSession] = {}
        self._finished_bytes = 0
        self._tombstones: dict[str, None] = {}
        self._expiries: list[tuple[float, int, CommandSession]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, command_id: str) -> CommandSession | None:
        """Return the command that bears this id, running or kept."""
        return self._sessions.get(command_id)

    def start(self, execute: Execute, *, fallback_id: str, now: float) -> CommandSession:
        """Return the command with this id; make it if there is none. `fallback_id` serves an `execute` without an id.

        Whatever else a repeated `execute` says is ignored (section 9.1, A9).
        """
        command_id = execute.command_id or fallback_id
        session = self._sessions.get(command_id)
        if session is None:
            session = CommandSession(
                execute, command_id=command_id, now=now, capacity=self._capacity, on_over=self._retire
            )
            self._sessions[command_id] = session
            self._tombstones.pop(command_id, None)
        return session

    def refusal(self, execute: Execute) -> ErrorReply | None:
        """Return the error for a command that cannot be started as asked, or not now; None for one that `start` may
        take.
        """
        if execute.command_id is not None and execute.command_id in self._sessions:
            return None
        fault = _fault_in(execute)
        if fault is None and len(self._sessions) - len(self._finished) >= self._max_running:
            fault = f"{self._max_running} commands are running, and more are not allowed"
        return None if fault is None else ErrorReply(error=fault, error_type="CommandError")

    def missing(self, command_id: str) -> ErrorReply:
        """Return the error for an id that `find` does not know (section 9.1, A10)."""
        if command_id in self._tombstones:
            text = f"the session of command {command_id} expired: its output is no longer kept"
            return ErrorReply(error=text, error_type="SessionExpired")
        return ErrorReply(error=f"there is no command {command_id}", error_type="CommandNotFound")

    def forget(self, session: CommandSession) -> None:
        """Drop a command that is over before its time. Idempotent."""
        if self._finished.pop(session.command_id, None) is None:
            return
        self._finished_bytes -= session.retained_bytes
        del self._sessions[session.command_id]
        session.expire()
        self._tombstones[session.command_id] = None
        while len(self._tombstones) > self._max_tombstones:
            del self._tombstones[next(iter(self._tombstones))]

    def deadline(self) -> float | None:
        """When the next command expires."""
        while self._expiries and self._is_stale(self._expiries[0][2]):
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def receive_timeout(self, now: float) -> None:
        """Forget what has expired."""
        while (expiry := self.deadline()) is not None and expiry <= now:
            self.forget(heapq.heappop(self._expiries)[2])

    def _is_stale(self, session: CommandSession) -> bool:
        return self._finished.get(session.command_id) is not session

    def _retire(self, session: CommandSession, now: float) -> None:
        self._finished[session.command_id] = session
        self._finished_bytes += session.retained_bytes
        expiry = now + session.ttl_seconds
        if expiry != math.inf:
            self._count += 1
            heapq.heappush(self._expiries, (expiry, self._count, session))
        while len(self._finished) > self._max_finished or (
            self._finished_bytes > self._max_finished_bytes and len(self._finished) > 1
        ):
            self.forget(next(iter(self._finished.values())))
        if len(self._expiries) > 2 * self._max_finished:
            self._expiries = [entry for entry in self._expiries if not self._is_stale(entry[2])]
            heapq.heapify(self._expiries)


class SessionConnection:
    """One websocket of `/execute/ws`: exactly one attachment to one command (section 3.2).

    Feed it messages; then run the events of `session`, and send `messages_to_send`. When `is_finished`, close with
    1000.
    """

    def __init__(self, table: SessionTable, *, fallback_id: str, now: float) -> None:
        """`fallback_id` becomes the id of a command that is started without one."""
        self._table = table
        self._fallback_id = fallback_id
        self._opening_until = now + OPENING_SECONDS
        self._attachment: Attachment | None = None
        self._announced = False
        self._close_input = False
        self._refusal: ErrorReply | None = None
        self.session: CommandSession | None = None
        """The command that this connection is or was attached to."""
        self.state: AttachmentState = AttachmentState.WAITING

    @property
    def is_finished(self) -> bool:
        """Whether everything has been said."""
        return self.state is AttachmentState.FINISHED

    @property
    def wants_input(self) -> bool:
        """Whether to read on: false while what this connection wrote to the command's input waits to be read."""
        return self.session is None or self.session.wants_input_from(self)

    def receive_message(self, payload: bytes, now: float) -> None:
        """Act on one message. Nothing is raised: unknown types are ignored, and so is what is malformed, once
        attached.
        """
        try:
            frame = decode_client_frame(payload)
        except CodecError as exc:
            if self.state is AttachmentState.WAITING:
                self._refuse(ErrorReply(error=str(exc), error_type="CommandError"))
            return
        if self.state is AttachmentState.WAITING:
            self._open(frame, now)
        elif self.session is not None and self.state is not AttachmentState.DETACHED:
            self._control(self.session, frame)

    def receive_closed(self, now: float) -> None:
        """The connection is gone, however it went. Idempotent."""
        self._step(AttachmentInput.DETACH)
        self._let_go(now)

    def messages_to_send(self, budget: int, now: float) -> list[bytes]:
        """Return messages with about `budget` bytes of output at most: `started` first, `exit` or `error` last."""
        if self._refusal is not None and self.state is AttachmentState.REFUSED:
            self._step(AttachmentInput.FINISH)
            return [encode_server_frame(self._refusal)]
        session, attachment = self.session, self._attachment
        messages: list[bytes] = []
        if self.state is not AttachmentState.ATTACHED or session is None or attachment is None:
            return messages
        if not self._announced and session.pid is not None:
            self._announced = True
            messages.append(encode_server_frame(Started(command_id=session.command_id, pid=session.pid)))
        messages += [encode_output(stream, data, offset) for stream, offset, data in attachment.take(budget, now)]
        if session.outcome is not None and not attachment.has_output:
            messages.append(encode_server_frame(session.outcome))
            self._step(AttachmentInput.FINISH)
            self._let_go(now)
        return messages

    def deadline(self) -> float | None:
        """When a connection that says nothing is refused."""
        return self._opening_until if self.state is AttachmentState.WAITING else None

    def receive_timeout(self, now: float) -> None:
        """Refuse a connection that said nothing for too long."""
        if self.state is AttachmentState.WAITING and now >= self._opening_until:
            text = f"neither execute nor reconnect came within {OPENING_SECONDS:g} seconds"
            self._refuse(ErrorReply(error=text, error_type="CommandError"))

    def _step(self, input: AttachmentInput) -> None:
        self.state = step(ATTACHMENT_TRANSITIONS, self.state, input)

    def _refuse(self, reply: ErrorReply) -> None:
        self._step(AttachmentInput.REFUSE)
        self._refusal = reply

    def _let_go(self, now: float) -> None:
        if self._attachment is not None:
            self._attachment.detach(now)
            self._attachment = None

    def _open(self, frame: ClientFrame | None, now: float) -> None:
        if isinstance(frame, CloseStdin):
            self._close_input = True
        elif isinstance(frame, Execute):
            self._execute(frame, now)
        elif isinstance(frame, Reconnect):
            session = self._table.find(frame.command_id)
            if session is None:
                self._refuse(self._table.missing(frame.command_id))
            else:
                self._attach(session, frame.stdout_offset, frame.stderr_offset, now)

    def _execute(self, frame: Execute, now: float) -> None:
        if (refusal := self._table.refusal(frame)) is not None:
            self._refuse(refusal)
            return
        if self._close_input and not frame.pty:
            frame = attrs.evolve(frame, close_stdin=True)
        self._attach(self._table.start(frame, fallback_id=self._fallback_id, now=now), 0, 0, now)

    def _attach(self, session: CommandSession, stdout_offset: int, stderr_offset: int, now: float) -> None:
        self._step(AttachmentInput.ATTACH)
        self.session = session
        self._attachment = session.attach(stdout_offset, stderr_offset, now)
        if self._close_input:
            session.close_input()

    def _control(self, session: CommandSession, frame: ClientFrame | None) -> None:
        if isinstance(frame, Input):
            session.write_input(frame.data, self)
        elif isinstance(frame, CloseStdin):
            session.close_input()
        elif isinstance(frame, Kill):
            session.kill()
        elif isinstance(frame, Resize):
            session.resize(frame.cols, frame.rows)
