"""Carries out what sessions say: makes processes, moves their bytes, kills their trees, and keeps their time."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Protocol

from ..protocol.session import InputCloseRequested, KillRequested, ResizeRequested, SpawnRequested
from ..protocol.session_table import SessionConnection, SessionTable
from .launcher import Launcher, LaunchError
from .marks import TreeKiller
from .processes import Process, Reaper

if TYPE_CHECKING:
    from ..protocol.frames import Execute, Stream
    from ..protocol.session import CommandSession
    from .settings import DaemonSettings

__all__ = ["CommandHub", "Listener", "RunningCommand"]


class Listener(Protocol):
    """Somebody who is told of a command's news."""

    def flush(self) -> None:
        """Send what can be sent now. Must not raise."""
        ...


class RunningCommand:
    """One session, its process, and those who listen. Whoever changed the session calls `update` afterwards."""

    def __init__(self, hub: CommandHub, session: CommandSession) -> None:
        self.session = session
        self.listeners: set[Listener] = set()
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._process: Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[None] | None = None
        self._exit_code: int | None = None
        self._exit_said = False

    def update(self) -> None:
        """Do what the session wants, tell the listeners, and look at the clock."""
        self._act()
        process, session = self._process, self.session
        if process is not None and session.input_pending:
            self._write(process)  # before the listeners look, who are read on when there is room
        for listener in tuple(self.listeners):
            listener.flush()
        if process is not None:
            process.want("stdout", session.wants_output("stdout"))
            process.want("stderr", session.wants_output("stderr"))
        self._arm()
        self._hub.updated(self)

    def _act(self) -> None:
        while events := self.session.events():
            for event in events:
                if isinstance(event, SpawnRequested):
                    self._spawn(event.execute)
                elif isinstance(event, KillRequested):
                    self._kill()
                elif isinstance(event, ResizeRequested) and self._process is not None:
                    self._process.resize(event.cols, event.rows)
                elif isinstance(event, InputCloseRequested) and self._process is not None:
                    self._process.close_stdin()

    def _spawn(self, execute: Execute) -> None:
        session, now = self.session, self._loop.time()
        try:
            launched = self._hub.launcher.launch(execute)
        except LaunchError as exc:
            session.spawn_failed(str(exc), now)
            return
        self._hub.reaper.watch(launched.pid, self._exited)
        self._process = Process(
            launched, read_bytes=session.read_bytes, received=self._received, ended=self._ended, writable=self.update
        )
        session.process_started(launched.pid, now)

    def _kill(self) -> None:
        if self._process is not None and self._killing is None:
            mark, alive = self._process.mark, self._exit_code is None
            self._killing = self._loop.create_task(self._hub.marks.kill(mark, leader_lives=alive))
            self._killing.add_done_callback(self._killed)

    def _killed(self, killing: asyncio.Task[None]) -> None:
        self._killing = None
        if not killing.cancelled() and self._exit_code is not None and not self._exit_said:
            self._exited(self._exit_code)

    def _exited(self, exit_code: int) -> None:
        self._exit_code = exit_code
        if self._killing is None:  # else the exit is said when nothing of the command is left
            self._exit_said = True
            unread = None
            if self._process is not None:
                unread = self._process.unread()
                self._process.close_stdin()
            self.session.process_exited(exit_code, self._loop.time(), unread)
            self.update()

    def _received(self, stream: Stream, data: bytes) -> None:
        self.session.receive_output(stream, data, self._loop.time())
        if not self.session.is_over:
            self.update()

    def _ended(self, stream: Stream) -> None:
        self.session.receive_output_eof(stream, self._loop.time())
        self.update()

    def _write(self, process: Process) -> None:
        written = process.write(self.session.input_pending)
        if written is None:
            self.session.input_failed()
        elif written:
            self.session.input_written(written)
            self._act()

    def _arm(self) -> None:
        """Have one timer that fires no later than the session's deadline; one that fires too early is set anew."""
        deadline = self.session.deadline()
        if deadline is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None or deadline < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        self.session.receive_timeout(self._loop.time())
        self.update()


class CommandHub:
    """All commands of the sandbox."""

    def __init__(self, settings: DaemonSettings) -> None:
        """Must be made inside the event loop."""
        limits = settings.limits
        self.table: SessionTable = SessionTable(
            capacity=limits.buffer_bytes,
            max_running=limits.running_commands,
            max_finished=limits.finished_commands,
            max_finished_bytes=limits.finished_bytes,
        )
        self.marks: TreeKiller = TreeKiller()
        self.launcher: Launcher = Launcher(settings, self.marks)
        self.reaper: Reaper = Reaper()
        self._running: dict[str, RunningCommand] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connect(self) -> SessionConnection:
        """Return a connection to the table of commands."""
        return SessionConnection(self.table, fallback_id=uuid.uuid4().hex, now=self._loop.time())

    def listen(self, session: CommandSession, listener: Listener) -> RunningCommand:
        """Return the command of a session, which will tell `listener` its news; call its `update` to get it going."""
        command = self._running.get(session.command_id)
        if command is None or command.session is not session:
            command = RunningCommand(self, session)
            if not session.is_over:
                self._running[session.command_id] = command
        command.listeners.add(listener)
        return command

    def updated(self, command: RunningCommand) -> None:
        """Forget a command that is over, and keep the time of those that are kept."""
        if command.session.is_over and self._running.get(command.session.command_id) is command:
            del self._running[command.session.command_id]
            self._arm()

    def _arm(self) -> None:
        deadline = self.table.deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        self.table.receive_timeout(self._loop.time())
        self._arm()
