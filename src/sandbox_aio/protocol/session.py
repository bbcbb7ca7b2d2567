"""One command as the daemon sees it, over any number of connections (wire protocol, sections 3.3 to 3.9).

A `CommandSession` is told what the process did and what the clients want. It says what to do in `events()`, and in
two levels that the driver looks at after every call: `wants_output(stream)`, whether the process's pipe may be read,
and `input_pending`, what is to be written to the process. Each reader has an `Attachment` with cursors of its own:
first what is kept is replayed, then it is live.

Back-pressure follows the fastest attached reader. One that has taken nothing for `STALL_SECONDS` no longer holds the
process back: it finds a gap when it goes on. With nobody attached the buffers overwrite their oldest bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import attrs

from .frames import ErrorReply, Execute, Exit, Stream
from .output_buffer import DEFAULT_CAPACITY, OutputBuffer
from .states import INPUT_TRANSITIONS, SESSION_TRANSITIONS, InputInput, InputState, SessionInput, SessionState, step
from .utf8 import Utf8Transcoder, repair_surrogates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "Attachment",
    "CommandSession",
    "InputCloseRequested",
    "KillRequested",
    "OutputPiece",
    "ResizeRequested",
    "SessionEvent",
    "SpawnRequested",
]

FRAME_BYTES = 64 * 1024
"""Bytes of output in one frame, at most; escaped as JSON they are at most six times as many, so less than 1 MiB
(section 3.9).
"""
INPUT_BYTES = 1 << 20
"""Bytes of standard input that wait for the process before whoever wrote them is read no more (section
9.1, A14).
"""
STALL_SECONDS = 10.0
"""After taking nothing for so long, a reader no longer holds the process back."""
DRAIN_SECONDS = 1.0
"""How long after the shell's exit something else may hold its output open before the exit is said (section 9.1,
A26).
"""
KILL_SECONDS = 10.0
"""How long killing a command that ran out of time may take before the timeout is said all the same."""
DEFAULT_IDLE_SECONDS = 300.0
DEFAULT_TTL_SECONDS = 600.0

_STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
_OVER = frozenset({SessionState.EXITED, SessionState.TIMED_OUT, SessionState.FAILED, SessionState.EXPIRED})

OutputPiece: TypeAlias = tuple[Stream, int, bytes]
"""A stream, the offset of the first byte, and valid UTF-8 of whole characters."""


@attrs.frozen(kw_only=True)
class SpawnRequested:
    """Make the process, then call `process_started` or `spawn_failed`. Always the first event, and never seen twice."""

    execute: Execute


@attrs.frozen(kw_only=True)
class InputCloseRequested:
    """Close the process's standard input: everything that was to be written has been."""


@attrs.frozen(kw_only=True)
class KillRequested:
    """Kill every process of the command, daemonised ones included; then report the exit as usual."""


@attrs.frozen(kw_only=True)
class ResizeRequested:
    """Give the terminal this size, in characters."""

    cols: int
    rows: int


SessionEvent: TypeAlias = SpawnRequested | InputCloseRequested | KillRequested | ResizeRequested


def _seconds(value: float, default: float) -> float:
    """Read an idle timeout or a TTL: 0 means the default, anything negative for ever (section 9.1, A11)."""
    return math.inf if value < 0 else value or default


class Attachment:
    """One reader of a session. `take` its output in turns; `detach` it however its connection ended."""

    def __init__(self, session: CommandSession, stdout_offset: int, stderr_offset: int) -> None:
        self._session = session
        self._offsets: dict[Stream, int] = {"stdout": stdout_offset, "stderr": stderr_offset}
        self.holding: bool = True
        """Whether the process waits for this reader."""
        self.waiting_since: float | None = None
        """When there began to be something to take; None if there is nothing."""

    def offset(self, stream: Stream) -> int:
        """The position of the next byte that this reader takes."""
        return self._offsets[stream]

    @property
    def has_output(self) -> bool:
        """Whether there is something to take."""
        return any(self._offsets[stream] < self._session.buffers[stream].end for stream in _STREAMS)

    def take(self, budget: int, now: float) -> list[OutputPiece]:
        """Return output from the cursors on, about `budget` bytes of it at most, and move the cursors.

        A piece has at most `FRAME_BYTES`. One whose offset is not where the last one ended follows a gap: the bytes
        between are lost.
        """
        taken: list[OutputPiece] = []
        left = budget
        while left > 0:
            before = left
            for stream in _STREAMS:
                offset, data = self._session.buffers[stream].read(self._offsets[stream], FRAME_BYTES)
                self._offsets[stream] = offset + len(data)
                if data:
                    taken.append((stream, offset, data))
                    left -= len(data)
            if left == before:
                break
        if taken:
            self.holding = True
            self.waiting_since = now if self.has_output else None
        return taken

    def detach(self, now: float) -> None:
        """Let go of the session. What this means for the command is for the session to decide. Idempotent."""
        self._session.detach(self, now)


class CommandSession:
    """One command: its process, its output, its readers, its clock.

    `state` moves by `SESSION_TRANSITIONS`; `outcome` is the last frame for every reader, once the command is over.
    `on_over` is called once at that moment.
    """

    def __init__(
        self,
        execute: Execute,
        *,
        command_id: str,
        now: float,
        capacity: int = DEFAULT_CAPACITY,
        on_over: Callable[[CommandSession, float], None] | None = None,
    ) -> None:
        self.execute = execute
        self.command_id = command_id
        self.state: SessionState = SessionState.STARTING
        self.pid: int | None = None
        self.outcome: Exit | ErrorReply | None = None
        self.buffers: dict[Stream, OutputBuffer] = {stream: OutputBuffer(capacity) for stream in _STREAMS}
        self.read_bytes: int = max(1, capacity // 4 - 4)
        """Read at most so much from a pipe at once: replacing invalid bytes makes three of one, and all must fit into
        the buffer.
        """
        self._transcoders: dict[Stream, Utf8Transcoder] = {stream: Utf8Transcoder() for stream in _STREAMS}
        self._open_streams: set[Stream] = {"stdout"} if execute.pty else set(_STREAMS)
        self._owed: dict[Stream, int] = dict.fromkeys(_STREAMS, 0)
        self._attachments: list[Attachment] = []
        self._events: list[SessionEvent] = [SpawnRequested(execute=execute)]
        self._input = bytearray()
        self._full_sources: set[object] = set()
        self._input_state = InputState.OPEN
        if execute.pty:
            self._input_state = InputState.TERMINAL
        elif execute.close_stdin:
            self._input_state = InputState.CLOSED
        self._input_broken = False
        self._kill_wanted = False
        self._exit_code: int | None = None
        self._idle_since: float | None = now
        self._idle_seconds = _seconds(execute.idle_timeout_seconds, DEFAULT_IDLE_SECONDS)
        self._timeout_at = math.inf
        self._drain_until = math.inf
        self.ttl_seconds: float = _seconds(execute.ttl_seconds, DEFAULT_TTL_SECONDS)
        self._on_over = on_over

    # --- what the driver looks at --------------------

    @property
    def is_over(self) -> bool:
        """Whether `outcome` is known: no output will be added any more."""
        return self.state in _OVER

    @property
    def retained_bytes(self) -> int:
        """Bytes of output that are kept."""
        return sum(len(buffer) for buffer in self.buffers.values())

    @property
    def input_pending(self) -> bytearray:
        """What is to be written to the process. Write from the front and call `input_written`; do not change it."""
        return self._input

    def wants_input_from(self, source: object) -> bool:
        """Whether a client may be read on: false for those who wrote while `INPUT_BYTES` or more wait for the process.

        The others are still read: one of them may want to kill.
        """
        return source not in self._full_sources

    def wants_output(self, stream: Stream) -> bool:
        """Whether the process's pipe is to be read. False holds the process back until its fastest reader has caught
        up.
        """
        mark = self.buffers[stream].end - self.read_bytes
        holders = [attachment for attachment in self._attachments if attachment.holding]
        return not holders or self.is_over or any(attachment.offset(stream) > mark for attachment in holders)

    def events(self) -> list[SessionEvent]:
        """Drain what is to be done, in order."""
        events, self._events = self._events, []
        return events

    # --- what the process did --------------------

    def process_started(self, pid: int, now: float) -> None:
        """The process runs. `pid` is that of the shell (section 9.1, A20). Then look at `input_pending` and
        `events()`.
        """
        self._step(SessionInput.STARTED)
        self.pid = pid
        self._timeout_at = now + (self.execute.timeout_seconds or math.inf)
        if self._kill_wanted:
            self._events.append(KillRequested())
        self._close_input_if_written()

    def spawn_failed(self, reason: str, now: float) -> None:
        """There is no process. `reason` is a sentence for the user."""
        self._step(SessionInput.SPAWN_FAILED)
        self._end(ErrorReply(error=reason, error_type="CommandError"), now)

    def receive_output(self, stream: Stream, data: bytes, now: float) -> None:
        """The process wrote. Output after the end of the session is dropped."""
        if not self.is_over:
            self._owed[stream] -= len(data)
            self._append(stream, self._transcoders[stream].feed(data), now)

    def receive_output_eof(self, stream: Stream, now: float) -> None:
        """Nobody can write to this stream any more."""
        self._open_streams.discard(stream)
        self._owed[stream] = 0
        self._end_if_drained(now)

    def process_exited(self, exit_code: int, now: float, unread: Mapping[Stream, int] | None = None) -> None:
        """The shell exited; 128 + n if signal n killed it (section 9.1, A1). Its output may still be open.

        `unread` says how many bytes of each stream wait in its pipe: the last words of the shell are among them, so
        the exit is not said before they are received, however slow the readers are.
        """
        if self.is_over:  # it was given up, because killing it took too long
            return
        self._step(SessionInput.PROCESS_EXIT)
        self._exit_code = exit_code
        self._owed.update(unread or {})
        self._drain_until = now + DRAIN_SECONDS
        self.input_failed()
        self._end_if_drained(now)

    def input_written(self, size: int) -> None:
        """So many bytes of `input_pending` went to the process. Then look at `wants_input_from` and `events()`."""
        del self._input[:size]
        if len(self._input) < INPUT_BYTES:
            self._full_sources.clear()
        self._close_input_if_written()

    def input_failed(self) -> None:
        """The process reads no more: what is pending and all that comes is dropped."""
        self._input.clear()
        self._full_sources.clear()
        self._input_broken = True

    # --- what clients want --------------------

    def attach(self, stdout_offset: int, stderr_offset: int, now: float) -> Attachment:
        """Add a reader from these offsets on: clamped to what is kept, or to the end (section 9.1, A5)."""
        positions = [
            max(0, min(offset, self.buffers[stream].end))
            for stream, offset in zip(_STREAMS, (stdout_offset, stderr_offset), strict=True)
        ]
        attachment = Attachment(self, *positions)
        if attachment.has_output:
            attachment.waiting_since = now
        self._attachments.append(attachment)
        self._idle_since = None
        return attachment

    def detach(self, attachment: Attachment, now: float) -> None:
        """Remove a reader. The last one to go starts the idle timer, or kills the command that was to be killed
        then.
        """
        if attachment not in self._attachments:
            return
        self._attachments.remove(attachment)
        if not self._attachments:
            self._idle_since = now
            if self.execute.kill_on_disconnect:
                self.kill()

    def write_input(self, data: str, source: object = None) -> None:
        """Queue text for standard input or the terminal; dropped once that is closed or the command is over (section
        3.6).
        """
        if self._input_state is not InputState.CLOSED and not self._input_broken and not self.is_over:
            self._input_state = step(INPUT_TRANSITIONS, self._input_state, InputInput.WRITE)
            self._input += repair_surrogates(data).encode()
            if len(self._input) >= INPUT_BYTES:
                self._full_sources.add(source)

    def close_input(self) -> None:
        """Half-close standard input once all that is pending is written. Idempotent; means nothing to a terminal."""
        if self._input_state is InputState.OPEN:
            self._input_state = step(INPUT_TRANSITIONS, self._input_state, InputInput.CLOSE)
            self._close_input_if_written()

    def kill(self) -> None:
        """Kill the command; ignored when it is over (section 3.8)."""
        self._kill_wanted = True
        if self.state in (SessionState.RUNNING, SessionState.DRAINING, SessionState.OVERDUE):
            self._events.append(KillRequested())

    def resize(self, cols: int, rows: int) -> None:
        """Change the size of the terminal; ignored if there is none or no terminal can have that size."""
        if self.execute.pty and not self.is_over and 0 < cols < 1 << 16 and 0 < rows < 1 << 16:
            self._events.append(ResizeRequested(cols=cols, rows=rows))

    # --- time --------------------

    def deadline(self) -> float | None:
        """When to call `receive_timeout` at the latest; None if time changes nothing. It may move after every other
        call.
        """
        if self.is_over:
            return None
        earliest = self._timeout_at if self.state is SessionState.RUNNING else self._drained_at()
        if self._idle_since is not None and not self._kill_wanted:
            earliest = min(earliest, self._idle_since + self._idle_seconds)
        if not all(map(self.wants_output, _STREAMS)):
            waits = [a.waiting_since for a in self._attachments if a.holding and a.waiting_since is not None]
            earliest = min(earliest, min(waits, default=math.inf) + STALL_SECONDS)
        return None if earliest == math.inf else earliest

    def receive_timeout(self, now: float) -> None:
        """Do what time demands: time out, go idle, stop waiting for a stalled reader or for output. Harmless if
        nothing is due.
        """
        if self.is_over:
            return
        for attachment in self._attachments:
            if attachment.waiting_since is not None and now >= attachment.waiting_since + STALL_SECONDS:
                attachment.holding = False
        if now >= self._drained_at():
            self._open_streams.clear()
            self._exit_code = self._exit_code if self._exit_code is not None else 128 + 9
            self._end_if_drained(now)
        elif self.state is SessionState.RUNNING and now >= self._timeout_at:
            self._step(SessionInput.TIMEOUT)
            self._drain_until = now + KILL_SECONDS
            self.kill()
        elif self._idle_since is not None and now >= self._idle_since + self._idle_seconds and not self._kill_wanted:
            self.kill()

    def expire(self) -> None:
        """Forget the output of a session that is over."""
        self._step(SessionInput.EXPIRE)

    # --- inside --------------------

    def _step(self, input: SessionInput) -> None:
        self.state = step(SESSION_TRANSITIONS, self.state, input)

    def _drained_at(self) -> float:
        """When not to wait any longer for the end of the output: not before all that is owed is received."""
        return math.inf if any(owed > 0 for owed in self._owed.values()) else self._drain_until

    def _append(self, stream: Stream, data: bytes, now: float) -> None:
        if data:
            self.buffers[stream].append(data)
            for attachment in self._attachments:
                if attachment.waiting_since is None:
                    attachment.waiting_since = now

    def _close_input_if_written(self) -> None:
        started = self.pid is not None and not self.execute.close_stdin
        if started and self._input_state is InputState.CLOSED and not self._input and not self._input_broken:
            self._input_broken = True
            self._events.append(InputCloseRequested())

    def _end_if_drained(self, now: float) -> None:
        if self._open_streams or self._exit_code is None or self.is_over:
            return
        for stream in _STREAMS:
            self._append(stream, self._transcoders[stream].finish(), now)
        timed_out = self.state is SessionState.OVERDUE
        self._step(SessionInput.DRAINED)
        self._end(self._timeout_reply() if timed_out else Exit(exit_code=self._exit_code), now)

    def _timeout_reply(self) -> ErrorReply:
        text = f"the command did not end within its timeout of {self.execute.timeout_seconds:g} seconds and was killed"
        return ErrorReply(error=text, error_type="CommandTimeout")

    def _end(self, outcome: Exit | ErrorReply, now: float) -> None:
        self.outcome = outcome
        self.input_failed()
        if self._on_over is not None:
            self._on_over(self, now)
