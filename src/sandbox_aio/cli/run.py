"""`sandbox-aio run`: one command in a sandbox of its own, with this process's streams."""

from __future__ import annotations

import codecs
import contextlib
import os
import shlex
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import anyio.to_thread

from sandbox_aio import AsyncSandboxClient, SandboxClientError

from . import complain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from sandbox_aio import AsyncCommandHandle, AsyncSandbox

__all__ = ["command_line", "run_command"]

STDIN: Final = 0
DESCRIPTORS: Final = {"stdout": 1, "stderr": 2}
READ_SIZE: Final = 64 * 1024
END_OF_FILE: Final = "\x04"
"""What a terminal takes for the end of its input."""


def run_command(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit code, 128 + n after a signal n to us, or 1 when it could not be run."""
    try:
        environment = dict(_variable(text) for text in arguments.env)
    except ValueError as error:
        complain(str(error))
        return 2
    return anyio.run(_Run(arguments, environment).run)


def command_line(words: Sequence[str]) -> str:
    """One word is a shell command line already; several are a program and its arguments, quoted for the shell."""
    return words[0] if len(words) == 1 else shlex.join(words)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"--env wants NAME=VALUE, not {text!r}")
    return name, value


def _endpoint() -> str | None:
    """None: as the environment says, by the client's own rules."""
    named = os.environ.get("LANGSMITH_ENDPOINT", "").strip() or os.environ.get("LANGCHAIN_ENDPOINT", "").strip()
    return None if named and named != "local" else "local"


class _Run:
    def __init__(self, arguments: argparse.Namespace, environment: dict[str, str]) -> None:
        self._arguments = arguments
        self._environment = environment
        self._handle: AsyncCommandHandle | None = None
        self._signal: signal.Signals | None = None
        """The signal that ended the run."""

    async def run(self) -> int:
        code = 1
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_signals, group.cancel_scope)
            code = await self._run_reporting_errors()
            group.cancel_scope.cancel()
        return code if self._signal is None else 128 + self._signal

    async def _run_reporting_errors(self) -> int:
        try:
            async with AsyncSandboxClient(api_endpoint=_endpoint()) as client:
                async with client.sandbox(snapshot=self._arguments.snapshot) as sandbox:
                    return await self._run_in(sandbox)
        except SandboxClientError as error:
            if self._signal is None:
                complain(str(error))
            return 1

    async def _run_in(self, sandbox: AsyncSandbox) -> int:
        arguments = self._arguments
        self._handle = handle = await sandbox.run(
            command_line(arguments.command),
            wait=False,
            close_input=False,
            pty=arguments.tty,
            timeout=arguments.timeout,
            env=self._environment or None,
            cwd=arguments.cwd,
        )
        with _raw_terminal() if arguments.tty else contextlib.nullcontext():
            async with anyio.create_task_group() as group:
                if arguments.tty:
                    group.start_soon(self._follow_window_size, handle)
                group.start_soon(self._forward_stdin, handle)
                code = await self._show_output(handle)
                group.cancel_scope.cancel()
        return code

    async def _show_output(self, handle: AsyncCommandHandle) -> int:
        try:
            async for chunk in handle:
                # In a thread, since whoever reads our output may pause for as long as it likes.
                data = chunk.data.encode()
                await anyio.to_thread.run_sync(_write, DESCRIPTORS[chunk.stream], data, abandon_on_cancel=True)
            return (await handle.result).exit_code
        except BrokenPipeError:
            self._signal = signal.SIGPIPE
            await handle.kill()
        except SandboxClientError as error:
            # Told here, where it is one error and not a group of them.
            if self._signal is None:
                complain(str(error))
        return 1

    async def _forward_stdin(self, handle: AsyncCommandHandle) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(SandboxClientError):  # The command is over, or its output tells what is wrong.
            while data := await _read_stdin():
                if text := decoder.decode(data):
                    await handle.send_input(text)
            if rest := decoder.decode(b"", final=True):
                await handle.send_input(rest)
            if self._arguments.tty:
                await handle.send_input(END_OF_FILE)
            else:
                await handle.close_input()

    async def _follow_window_size(self, handle: AsyncCommandHandle) -> None:
        with anyio.open_signal_receiver(signal.SIGWINCH) as changes, contextlib.suppress(OSError, SandboxClientError):
            while True:
                size = os.get_terminal_size(STDIN)
                await handle.resize(size.columns, size.lines)
                await anext(aiter(changes))

    async def _watch_signals(self, scope: anyio.CancelScope) -> None:
        """The first signal kills the command, whose end is awaited; the next one ends everything."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                first = self._signal is None
                self._signal = number
                if not first or self._handle is None:
                    scope.cancel()
                    return
                with contextlib.suppress(SandboxClientError):
                    await self._handle.kill()


async def _read_stdin() -> bytes:
    """Some bytes of stdin, b"" at its end. A file is always readable, and is not waited for."""
    try:
        await anyio.wait_readable(STDIN)
    except PermissionError:
        await anyio.lowlevel.checkpoint()
    except OSError:
        return b""
    try:
        return os.read(STDIN, READ_SIZE)
    except OSError:
        return b""


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the command, Ctrl-C too. Without a terminal on stdin, nothing changes."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(STDIN)
    tty.setraw(STDIN)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
