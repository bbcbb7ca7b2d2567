"""One command, seen by its client, over as many connections as it takes (wire protocol, sections 3.2 to 3.12).

`ClientCommand` decides everything: what to send on a fresh connection, what a lost one means, when to try again and
from which offsets, when to give up. A driver moves bytes and time:

    command.begin(now)
    while not command.finished:
        if command.wants_connection:
            ...                         # open a transport until command.deadline()
            command.connection_made(now)            # or connection_failed(error, now)
        ...                             # send command.bytes_to_send(); close the transport if command.wants_close
        ...                             # wait for bytes, for command.deadline(), or for an intent
        command.receive_bytes(data, now)            # or receive_eof(now), or receive_timeout(now)
        ...                             # hand command.events() on

A wish of the caller (`kill`, `send_input`, `close_input`) may come at any time; what cannot be sent now is sent as
soon as the command is attached. A kill, and a closed input, are sent anew on every later connection, because nobody
knows whether they arrived. Input is sent at most once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import (
    LocalProtocolError,
    RemoteProtocolError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxOperationError,
)
from ..models import OutputChunk
from .codec import CodecError, decode_server_frame, encode_client_frame
from .command_errors import (
    RETRYABLE_STATUSES,
    error_of_deadline,
    error_of_losses,
    error_of_refusal,
    error_of_reply,
)
from .cursor import OutputCursor
from .deadlines import Deadlines, Due
from .events import CommandEvent, CommandExited, CommandFailed, CommandStarted
from .frames import ErrorReply, Execute, Exit, Input, Kill, Reconnect, ServerFrame, Started, Stream
from .intents import Intents
from .policy import CommandPolicy, Endpoint
from .retry import Attempts
from .states import (
    COMMAND_TRANSITIONS,
    TERMINAL_COMMAND_STATES,
    CommandInput,
    CommandState,
    InputState,
    KillState,
    WebSocketState,
    step,
)
from .websocket import Closed, Opened, Refused, WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ClientCommand"]


_TOO_LARGE = 1009
_ATTACHED = frozenset({CommandState.RUNNING, CommandState.RESUMING})
_OPENING = frozenset({CommandState.CONNECTING, CommandState.REATTACHING})


class ClientCommand:
    """The state of one command. See the module's text for how a driver uses it.

    Args:
        opening: `Execute` to start a command, `Reconnect` to attach to one.
        endpoint: where.
        policy: the bounds.
        chance: returns a number in [0, 1), for the spread of delays.
        terminal: for a `Reconnect`: whether the command has a terminal.
        input_closed: for a `Reconnect`: whether its input is known to be closed.
    """

    def __init__(
        self,
        opening: Execute | Reconnect,
        endpoint: Endpoint,
        *,
        policy: CommandPolicy | None = None,
        chance: Callable[[], float] = lambda: 0.0,
        terminal: bool = False,
        input_closed: bool = False,
    ) -> None:
        if opening.command_id is None:
            raise LocalProtocolError("a client chooses the command's id, so that it can send the start again")
        self.state: CommandState = CommandState.NEW
        self.command_id: str = opening.command_id
        self.pid: int | None = None
        self.websocket_missing: bool = False
        """Whether the start failed because the address has no websocket (status 404 at the upgrade)."""
        self.may_run: bool = isinstance(opening, Reconnect)
        """Whether the daemon may know the command: if not, letting go needs no kill."""
        self._opening = opening
        self._endpoint = endpoint
        self._policy = policy or CommandPolicy()
        self._chance = chance
        if isinstance(opening, Execute):
            terminal, input_closed = opening.pty, opening.close_stdin
            self._attempts = Attempts(self._policy.start_retries)
        else:
            self._attempts = Attempts(self._policy.reattach_attempts)
        self._intents = Intents(
            terminal=terminal,
            input_closed=input_closed,
            max_pending_input_bytes=self._policy.max_pending_input_bytes,
        )
        self._stdout = OutputCursor(opening.stdout_offset if isinstance(opening, Reconnect) else 0)
        self._stderr = OutputCursor(opening.stderr_offset if isinstance(opening, Reconnect) else 0)
        self._websocket: WebSocket | None = None
        self._out: list[bytes] = []
        self._events: list[CommandEvent] = []
        self._deadlines = Deadlines()
        self._attached_at: float | None = None
        self._wrote_input = False

    # --- what a driver asks ------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the command is over for this client: exited, failed or released."""
        return self.state in TERMINAL_COMMAND_STATES

    @property
    def wants_connection(self) -> bool:
        """Whether a transport is to be opened now."""
        return self._websocket is None and self.state in _OPENING

    @property
    def wants_close(self) -> bool:
        """Whether the present transport is of no more use, once `bytes_to_send` is sent.

        Nothing from the peer is waited for.
        """
        return self._websocket is None or self.finished or self._websocket.finished

    @property
    def attached(self) -> bool:
        """Whether the command is known to run, or to have run, and a connection to it is open."""
        return self.state in _ATTACHED

    def offset(self, stream: Stream) -> int:
        """Return the offset of the next byte expected."""
        return self._cursor(stream).offset

    def missing(self, stream: Stream) -> int:
        """Return how many bytes of a stream were lost in gaps."""
        return self._cursor(stream).missing

    def bytes_to_send(self) -> list[bytes]:
        """Drain what must go out on the present transport, in order."""
        if self._websocket is not None:
            self._out += self._websocket.bytes_to_send()
        out, self._out = self._out, []
        return out

    def events(self) -> list[CommandEvent]:
        """Drain what happened, in order.

        `CommandExited` or `CommandFailed` comes last, once, unless the command is released.
        """
        events, self._events = self._events, []
        return events

    def deadline(self) -> float | None:
        """Return when `receive_timeout` will have something to do."""
        if self.finished:
            return None
        healthy = None
        if self._attached_at is not None and self._attempts.used:
            healthy = self._attached_at + self._policy.healthy_after
        silent = self._websocket.deadline() if self._websocket is not None else None
        return self._deadlines.earliest(healthy, silent)

    # --- what a driver reports ---------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Start or attach: from now on a connection is wanted.

        Raises:
            LocalProtocolError: it was begun before.
        """
        if isinstance(self._opening, Execute):
            self._step(CommandInput.CONNECT)
            self._deadlines.start_by = now + self._policy.start_timeout
        else:
            self._step(CommandInput.ATTACH)
        self._deadlines.open_by = now + self._policy.open_timeout

    def connection_made(self, now: float) -> None:
        """A transport is open: the upgrade request is queued. Then call `bytes_to_send`.

        Raises:
            LocalProtocolError: no connection is wanted.
        """
        if not self.wants_connection:
            raise LocalProtocolError(f"a command that is {self.state.value} wants no connection")
        endpoint = self._endpoint
        self._websocket = WebSocket.connect(
            host=endpoint.host,
            target=endpoint.target,
            headers=endpoint.header_pairs(),
            limits=self._policy.limits,
        )

    def connection_failed(self, error: SandboxClientError, now: float) -> None:
        """No transport could be opened.

        A `SandboxConnectionError` may be mended by another try, anything else may not.
        """
        if self.finished or not self.wants_connection:
            return
        if isinstance(error, SandboxConnectionError) and not isinstance(error, RemoteProtocolError):
            self._lost(error, now)
        else:
            self._fail(error, now)

    def receive_bytes(self, data: bytes | memoryview, now: float) -> None:
        """Feed what the transport delivered. Then call `bytes_to_send` and `events`."""
        if self._websocket is None or self.finished:
            return
        self._websocket.receive_bytes(data, now)
        self._process(now)

    def receive_eof(self, now: float) -> None:
        """The transport ended or broke."""
        if self._websocket is None or self.finished:
            return
        self._websocket.receive_eof(now)
        self._process(now)

    def receive_timeout(self, now: float) -> None:
        """Do what is due by now."""
        if self.finished:
            return
        due = self._deadlines.due(now)
        if due is Due.CONNECT:
            self._deadlines.connect_at = None
            self._deadlines.open_by = now + self._policy.open_timeout
            self._step(CommandInput.ATTACH if self.state is CommandState.DETACHED else CommandInput.CONNECT)
        elif due is not None:
            timeout = self._opening.timeout_seconds if isinstance(self._opening, Execute) else 0
            error = error_of_deadline(due, self._policy, timeout)
            if due is Due.OPEN or due is Due.KILL_AGAIN:
                self._lost(error, now)
                return
            self._intents.kill()
            self._send_intents()
            self._fail(error, now)
        else:
            self._refill_if_healthy(now)
            if self._websocket is not None:
                self._websocket.receive_timeout(now)
                self._process(now)

    def pause_reading(self, now: float) -> None:
        """Say that the driver stops reading because nobody takes the output: the peer's silence means nothing now."""
        self._deadlines.pause(now)
        if self._websocket is not None:
            self._websocket.pause_reading(now)

    def resume_reading(self, now: float) -> None:
        """Say that the driver reads again. The time between does not count."""
        self._deadlines.resume(now)
        if self._websocket is not None:
            self._websocket.resume_reading(now)

    # --- what the caller wants ---------------------------------------------------------------------------------------

    @property
    def killed(self) -> bool:
        """Whether the caller asked to kill it."""
        return self._intents.kill_state is not KillState.NONE

    @property
    def kill_pending(self) -> bool:
        """Whether a kill was asked for that no attached connection has carried yet."""
        return self._intents.kill_state is KillState.WANTED

    @property
    def input_state(self) -> InputState:
        """Whether input can be sent."""
        return self._intents.input_state

    def kill(self, now: float) -> None:
        """Kill the command with all that it started; its exit is still awaited, for `kill_grace` seconds.

        Raises:
            LocalProtocolError: the command is over.
        """
        self._check_not_over("kill it")
        self._intents.kill()
        if self._deadlines.kill_by is None:
            paused_at = self._deadlines.paused_at
            self._deadlines.kill_by = (now if paused_at is None else paused_at) + self._policy.kill_grace
        self._send_intents(now)

    def send_input(self, text: str) -> None:
        """Write to the command's standard input or terminal.

        While the command is not attached the text is kept, `max_pending_input_bytes` in all.

        Raises:
            LocalProtocolError: the command is over, its input is closed, or too much is kept already.
        """
        self._check_not_over("send input")
        self._intents.send_input(text, keep=not self.attached)
        self._send_intents()

    def close_input(self) -> None:
        """Close the command's standard input; with a terminal this does nothing.

        Raises:
            LocalProtocolError: the command is over.
        """
        self._check_not_over("close its input")
        self._intents.close_input()
        self._send_intents()

    def resize(self, cols: int, rows: int) -> None:
        """Tell the command's terminal its size, in characters.

        Raises:
            LocalProtocolError: the command is over or has no terminal.
        """
        self._check_not_over("resize its terminal")
        self._intents.resize(cols, rows)
        self._send_intents()

    def release(self, now: float) -> None:
        """Let go; the command runs on. Nothing is awaited.

        Raises:
            LocalProtocolError: the command is over.
        """
        self._step(CommandInput.RELEASE)
        self._hang_up(now, 1000)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _process(self, now: float) -> None:
        assert self._websocket is not None
        events = self._events
        progress = False
        attached = self.attached
        stdout, stderr = self._stdout, self._stderr
        for item in self._websocket.events():
            if not isinstance(item, (bytes, memoryview)):
                if progress:
                    self._progressed()
                    progress = False
                self._connection_event(item, now)
            else:
                try:
                    frame = decode_server_frame(item)
                except CodecError as exc:
                    self._violation(str(exc), now)
                    return
                if type(frame) is OutputChunk and attached:
                    cursor = stdout if frame.stream == "stdout" else stderr
                    data = frame.data
                    if frame.offset == cursor.offset and data and data.isascii():
                        cursor.offset += len(data)
                        cursor.caught_up = True
                        events.append(frame)
                        progress = True
                    elif fresh := cursor.accept(frame):
                        events += fresh
                        progress = True
                    continue
                self._frame(frame, now)
            if self.finished:
                return
            attached = self.attached
        if progress:
            self._progressed()

    def _progressed(self) -> None:
        """There was output that was not seen before: losing the connection again may be mended again."""
        self._attempts.refill()
        if self.state is CommandState.RESUMING:
            self._step(CommandInput.OUTPUT)

    def _refill_if_healthy(self, now: float) -> None:
        if self._attached_at is not None and now >= self._attached_at + self._policy.healthy_after:
            self._attempts.refill()

    def _connection_event(self, event: Opened | Refused | Closed, now: float) -> None:
        if isinstance(event, Opened):
            self._opened(now)
        elif isinstance(event, Refused):
            error = error_of_refusal(event)
            if event.status in RETRYABLE_STATUSES:
                self._lost(error, now)
            else:
                self.websocket_missing = event.status == 404 and self.state is CommandState.CONNECTING
                self._fail(error, now)
        elif event.violation:
            self._violation(event.reason, now)
        elif event.code == _TOO_LARGE:
            message = f"the server does not take a message as large as ours ({event.reason or 'close code 1009'})"
            self._fail(SandboxOperationError(f"{message}; write what is long to a file first", "command"), now)
        else:
            detail = f" ({event.reason})" if event.reason else ""
            self._lost(SandboxConnectionError(f"the connection was closed with code {event.code}{detail}"), now)

    def _opened(self, now: float) -> None:
        assert self._websocket is not None
        self._deadlines.open_by = None
        opening = self._opening
        if self.state is CommandState.REATTACHING:
            opening = Reconnect(
                command_id=self.command_id, stdout_offset=self._stdout.offset, stderr_offset=self._stderr.offset
            )
            self._stdout.attached()
            self._stderr.attached()
        self._step(CommandInput.UPGRADED)
        if self._websocket.state is not WebSocketState.OPEN:  # it was closed in the same breath; that comes next
            return
        self._websocket.send_text(encode_client_frame(opening))
        self.may_run = True
        self._attached_at = now if self.attached else None
        self._send_intents(now)

    def _frame(self, frame: ServerFrame | None, now: float) -> None:
        if type(frame) is Started and self.state is not CommandState.CONNECTING:
            self._started(frame, now)
        elif type(frame) is Exit and self.attached:
            self._step(CommandInput.EXIT)
            self._events.append(CommandExited(exit_code=frame.exit_code))
            self._hang_up(now, 1000)
        elif type(frame) is ErrorReply:
            timeout = self._opening.timeout_seconds if isinstance(self._opening, Execute) else None
            attaching = isinstance(self._opening, Reconnect)
            error = error_of_reply(frame, command_id=self.command_id, attaching=attaching, timeout=timeout)
            self._fail(error, now)
        elif frame is not None:
            self._violation(f"it sent {type(frame).__name__} before it said that the command started", now)

    def _started(self, frame: Started, now: float) -> None:
        first = self.state is CommandState.STARTING
        self._step(CommandInput.STARTED)
        self.pid = frame.pid if frame.pid is not None else self.pid
        if not first:
            return
        self.command_id = frame.command_id
        self._deadlines.start_by = None
        self._attached_at = now
        self._attempts = Attempts(self._policy.reattach_attempts)
        assert isinstance(self._opening, Execute)
        if self._opening.timeout_seconds > 0:
            self._deadlines.run_by = now + self._opening.timeout_seconds + self._policy.timeout_grace
        self._events.append(CommandStarted(command_id=frame.command_id, pid=frame.pid))
        self._send_intents(now)

    def _send_intents(self, now: float | None = None) -> None:
        """Send what the caller wants, if the command is attached.

        Args:
            now: given where a kill may be among it. One that goes out behind input may be stuck there: a daemon reads
                no more of a connection while the command reads none of its input.
        """
        websocket = self._websocket
        if self.attached and websocket is not None and websocket.state is WebSocketState.OPEN:
            for frame in self._intents.frames():
                websocket.send_text(encode_client_frame(frame))
                self._wrote_input = self._wrote_input or type(frame) is Input
                if type(frame) is Kill and self._wrote_input and now is not None:
                    self._deadlines.kill_again_at = now + self._policy.kill_patience

    # --- ends --------------------------------------------------------------------------------------------------------

    def _lost(self, error: SandboxClientError, now: float) -> None:
        """The connection is gone, and another may be better: wait for it, or give up."""
        self._refill_if_healthy(now)
        self._websocket = None
        self._deadlines.open_by = self._deadlines.kill_again_at = self._attached_at = None
        self._wrote_input = False
        self._out = []
        self._step(CommandInput.LOST)
        self._intents.connection_lost()
        resuming = self.state is CommandState.DETACHED
        if not self._attempts.spend():
            tries = self._attempts.limit if resuming else self._attempts.limit + 1
            failure = error_of_losses(error, command_id=self.command_id, tries=tries, started=resuming)
            self._fail(failure, now)
            return
        used = self._attempts.used - 1 if resuming else self._attempts.used
        delay = self._policy.backoff.delay(used, self._chance()) if used else 0.0
        asked: float | None = getattr(error, "retry_after", None)
        self._deadlines.connect_at = now + (min(asked, self._policy.start_timeout) if asked is not None else delay)

    def _violation(self, reason: str, now: float) -> None:
        hint = "; is this the address of a sandbox service?" if not self.may_run else ""
        self._fail(RemoteProtocolError(f"the server broke the protocol: {reason}{hint}"), now, code=1002)

    def _fail(self, error: SandboxClientError, now: float, code: int = 1000) -> None:
        self._step(CommandInput.FAIL)
        self._events.append(CommandFailed(error=error))
        self._hang_up(now, code)

    def _hang_up(self, now: float, code: int) -> None:
        """Say goodbye, if the connection is open, and wait for nothing."""
        websocket = self._websocket
        if websocket is not None and websocket.state is WebSocketState.OPEN:
            websocket.close(now, code)
        self._intents.clear()

    # --- small things ------------------------------------------------------------------------------------------------

    def _cursor(self, stream: Stream) -> OutputCursor:
        return self._stdout if stream == "stdout" else self._stderr

    def _step(self, input: CommandInput) -> None:
        self.state = step(COMMAND_TRANSITIONS, self.state, input)

    def _check_not_over(self, what: str) -> None:
        if self.finished:
            raise LocalProtocolError(f"the command is over ({self.state.value}): it is too late to {what}")
