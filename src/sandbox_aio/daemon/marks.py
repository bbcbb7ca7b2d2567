"""A mark that a command's processes cannot lose, and the killing of all that bear it.

Every command gets a hard limit of its own for a resource that nothing uses: processor time under real-time
scheduling, in microseconds. Each is lower than the one before. Processes inherit it across fork, exec and `setsid`,
and can lower it but never raise it; `/proc/<pid>/limits` shows it. Decision record 0201 says why, and what remains.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ENVIRONMENT_MARK", "CommandMark", "MarksExhausted", "TreeKiller"]

_RTTIME = getattr(resource, "RLIMIT_RTTIME", 15)
_LINE = b"\nMax realtime timeout"
_TOP = 1 << 62
_DAEMON_SPAN = 1 << 39
"""Marks of one daemon. Every process id has a span of its own, so that two daemons that see each other do not share
marks.
"""
_COMMAND_SPAN = 1 << 12
"""Marks of one command: itself, and the commands of a daemon that runs inside it."""

ENVIRONMENT_MARK = "SANDBOX_COMMAND_MARK"
"""The environment variable that carries the mark as well, for programs that set this limit themselves."""

KILL_SECONDS = 5.0
"""How long a tree is hunted before it is given up: what is left then cannot be killed."""
_KILLING_PASSES = 3
"""After so many passes that still found something, processes are stopped before they are killed: they fork too fast."""


class MarksExhausted(Exception):
    """There are no marks left."""


@attrs.frozen
class CommandMark:
    """The highest limit of a command's processes, and the process id of its shell, which leads a session and a
    group.
    """

    value: int
    leader: int


class _Wanted:
    """A tree that is being killed."""

    def __init__(self, mark: CommandMark, now: float) -> None:
        self.mark = mark
        self.clean_passes = 0
        self.passes = 0
        self.until = now + KILL_SECONDS
        self.stopped: set[int] = set()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class TreeKiller:
    """Issues marks, and kills whole trees by them. One walk over `/proc` serves all trees that are being killed."""

    def __init__(self) -> None:
        hard = resource.getrlimit(_RTTIME)[1]
        if 0 <= hard < _TOP:  # inside a command of another daemon, or of a user who has set this limit
            self._top, self._floor, self._stride = hard, max(0, hard - _COMMAND_SPAN), 1
        else:
            self._top = _TOP - os.getpid() * _DAEMON_SPAN
            self._floor, self._stride = self._top - _DAEMON_SPAN, _COMMAND_SPAN
        self._last = self._top
        self._wanted: list[_Wanted] = []
        self._sweeper: asyncio.Task[None] | None = None

    def issue(self) -> int:
        """Lower our own limit, so that the next process inherits a new mark, and return it.

        Raises:
            MarksExhausted: there are no more.
        """
        mark = self._last - self._stride
        if mark <= self._floor:
            raise MarksExhausted("this sandbox has run too many commands, or is nested too deeply, to start another")
        resource.setrlimit(_RTTIME, (mark, mark))
        self._last = mark
        return mark

    async def kill(self, mark: CommandMark, *, leader_lives: bool) -> None:
        """Kill every process of a command, and return when none is left or `KILL_SECONDS` have passed.

        `leader_lives`: the leader has not been reaped, so its process id cannot have passed to another.
        Cancellation: the killing goes on.
        """
        if leader_lives:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(mark.leader, signal.SIGKILL)
        wanted = _Wanted(mark, time.monotonic())
        self._wanted.append(wanted)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="tree killer")
        await asyncio.shield(wanted.gone)

    def kill_all(self) -> None:
        """Kill every process of every command there ever was, at once and without an event loop."""
        until = time.monotonic() + KILL_SECONDS
        clean = 0
        while clean < 2 and time.monotonic() < until:
            found = [pid for pid, value in _limits() if self._floor < value < self._top and _lives(pid)]
            for pid in found:
                _signal(pid, signal.SIGKILL)
            clean = 0 if found else clean + 1

    async def _sweep(self) -> None:
        pause = 0.0
        while self._wanted:
            self._pass(self._wanted)
            now = time.monotonic()
            for wanted in self._wanted:
                if (wanted.clean_passes >= 2 or now > wanted.until) and not wanted.gone.done():
                    wanted.gone.set_result(None)
            self._wanted = [wanted for wanted in self._wanted if not wanted.gone.done()]
            await asyncio.sleep(pause)
            pause = min(0.02, pause * 2 + 0.001)
        self._sweeper = None

    def _pass(self, trees: list[_Wanted]) -> None:
        """Walk over all processes once, and signal those of `trees`."""
        found: dict[int, list[int]] = {tree.mark.value: [] for tree in trees}
        strangers = []
        for pid, value in _limits():
            if self._floor < value < self._top:
                found.get(-(-value // self._stride) * self._stride, []).append(pid)
            elif value <= self._floor:
                strangers.append(pid)
        for tree in trees:
            members = found[tree.mark.value]
            members += [pid for pid in strangers if _belongs(pid, tree.mark, members)]
            self._strike(tree, [pid for pid in members if _lives(pid)])

    def _strike(self, tree: _Wanted, members: list[int]) -> None:
        tree.passes += 1
        tree.clean_passes = 0 if members else tree.clean_passes + 1
        unseen = [pid for pid in members if pid not in tree.stopped]
        if tree.passes > _KILLING_PASSES and unseen:
            tree.stopped.update(unseen)
            for pid in unseen:
                _signal(pid, signal.SIGSTOP)
            return
        for pid in members:
            _signal(pid, signal.SIGKILL)


def _limits() -> Iterator[tuple[int, int]]:
    """Yield every other process, zombies too, and its hard limit, if it has one."""
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in (own, 1):
            value = _limit(int(name))
            if value is not None:
                yield int(name), value


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _limit(pid: int) -> int | None:
    text = _read(f"/proc/{pid}/limits")
    at = text.find(_LINE)
    if at < 0:
        return None
    hard = text[at + len(_LINE) :].split(None, 2)[1]
    return int(hard) if hard.isdigit() else None


def _lives(pid: int) -> bool:
    """Whether a process is more than a zombie that waits for its parent. Threads can outlive the first one."""
    fields = _status(pid)
    return len(fields) > 17 and (fields[0] not in (b"Z", b"X") or int(fields[17]) > 1)


def _status(pid: int) -> list[bytes]:
    """Return the fields of `/proc/<pid>/stat` from the state on; none if there is no such process."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _belongs(pid: int, mark: CommandMark, members: list[int]) -> bool:
    """Whether a process that set the limit itself is of this command: by session, group, parent or environment."""
    fields = _status(pid)
    if len(fields) < 4:
        return False
    parent, group, session = (int(field) for field in fields[1:4])
    if mark.leader in (group, session) or parent == mark.leader or parent in members:
        return True
    entry = f"{ENVIRONMENT_MARK}={mark.value:x}".encode()
    return entry in _read(f"/proc/{pid}/environ").split(b"\0")


def _signal(pid: int, number: signal.Signals) -> None:
    """Signal a process unless its id has passed to another: what held it when it was looked at is what is signalled."""
    before = _limit(pid)
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if before is not None and _limit(pid) == before:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)
