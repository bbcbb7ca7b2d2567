"""A command's process in the event loop: its pipes, its exit, its end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import termios
from typing import TYPE_CHECKING

from . import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..protocol.frames import Stream
    from .launcher import Launched
    from .marks import CommandMark

__all__ = ["Process", "Reaper"]

_READ_BYTES = 64 * 1024
_BULK_BYTES = 256 * 1024
_PIPE_BYTES = 1 << 20
_WRITE_BYTES = 64 * 1024


class Reaper:
    """Waits for every child of this process: commands, and as the first process of a sandbox, orphans."""

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[[int], None]] = {}

    def install(self) -> None:
        """Begin to listen to SIGCHLD. Must be called on the main thread, with its event loop running."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def watch(self, pid: int, exited: Callable[[int], None]) -> None:
        """Call `exited` with the exit code of a child, which must not have been reaped: 128 + n after signal n."""
        self._waiting[pid] = exited

    def reap(self) -> None:
        """Reap all that have exited."""
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = reaped
                code = os.waitstatus_to_exitcode(status)
                exited = self._waiting.pop(pid, None)
                if exited is not None:
                    exited(128 - code if code < 0 else code)


class Process:
    """The pipes or the terminal of one process.

    Output is read while it is wanted, and to its end, however long after the process: what outlives it must not break
    on a closed pipe.
    """

    def __init__(
        self,
        launched: Launched,
        *,
        read_bytes: int,
        received: Callable[[Stream, bytes], None],
        ended: Callable[[Stream], None],
        writable: Callable[[], None],
    ) -> None:
        """`read_bytes` bounds one read.

        `received` gets output, `ended` says that nobody can write to a stream any more, `writable` that `write` may
        be tried again.
        """
        self.pid: int = launched.pid
        self.mark: CommandMark = launched.mark
        self._loop = asyncio.get_running_loop()
        self._read_bytes = read_bytes
        self._received = received
        self._ended = ended
        self._writable = writable
        self._terminal = launched.terminal
        self._stdin = launched.stdin
        self._writing = False
        self._outputs: dict[Stream, int] = {"stdout": launched.stdout}
        if launched.stderr is not None:
            self._outputs["stderr"] = launched.stderr
        self._reading: set[Stream] = set()
        self._sizes: dict[Stream, int] = dict.fromkeys(self._outputs, min(read_bytes, _READ_BYTES))

    def want(self, stream: Stream, wanted: bool) -> None:
        """Read from a stream, or stop reading, which holds the process back once its pipe is full."""
        fd = self._outputs.get(stream)
        if fd is None or wanted == (stream in self._reading):
            return
        if wanted:
            self._reading.add(stream)
            self._loop.add_reader(fd, self._read, stream, fd)
        else:
            self._reading.discard(stream)
            self._loop.remove_reader(fd)

    def unread(self) -> dict[Stream, int]:
        """Return how many bytes wait in the pipe of each stream."""
        return {stream: _waiting(fd) for stream, fd in self._outputs.items()}

    def write(self, data: bytearray) -> int | None:
        """Write from the front of `data`; return how much was written, None if the process reads no more."""
        if self._stdin is None:
            return None
        written = 0
        try:
            with memoryview(data) as view:
                while written < len(data):
                    written += os.write(self._stdin, view[written : written + _WRITE_BYTES])
        except BlockingIOError:
            self._watch_stdin(self._stdin, watched=True)
            return written
        except OSError:
            self.close_stdin()
            return None
        self._watch_stdin(self._stdin, watched=False)
        return written

    def close_stdin(self) -> None:
        """Close standard input. Idempotent. A terminal stays open for reading."""
        fd, self._stdin = self._stdin, None
        if fd is not None:
            self._watch_stdin(fd, watched=False)
            if not self._terminal:
                os.close(fd)

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of the terminal, if there still is one."""
        if self._terminal and "stdout" in self._outputs:
            terminal.resize(self._outputs["stdout"], columns, rows)

    def _watch_stdin(self, fd: int, *, watched: bool) -> None:
        if watched != self._writing:
            self._writing = watched
            if watched:
                self._loop.add_writer(fd, self._writable)
            else:
                self._loop.remove_writer(fd)

    def _read(self, stream: Stream, fd: int) -> None:
        size = self._sizes[stream]
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        if not data:
            self._end(stream, fd)
            return
        if len(data) == size < min(self._read_bytes, _BULK_BYTES):
            self._sizes[stream] = min(self._read_bytes, _BULK_BYTES)
            with contextlib.suppress(OSError):  # an unprivileged user's pipes may be used up
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._received(stream, data)

    def _end(self, stream: Stream, fd: int) -> None:
        self.want(stream, False)
        del self._outputs[stream]
        if self._terminal:
            self.close_stdin()
        os.close(fd)
        self._ended(stream)


def _waiting(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # a terminal that nobody has open any more
        return 0
