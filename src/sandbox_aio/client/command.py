"""Commands for users: run one to its end, or hold a handle on it (wire protocol, section 3.14)."""

from __future__ import annotations

import inspect
import random
import weakref
from operator import length_hint
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import anyio
import attrs

from ..drivers.command import CommandDriver
from ..drivers.scopes import single_error
from ..drivers.transport import Address, Transport, open_transport
from ..errors import LocalProtocolError, SandboxOperationError
from ..protocol.command import ClientCommand
from ..protocol.frames import Reconnect
from ..protocol.policy import CommandPolicy, Endpoint
from ..protocol.states import InputState
from .follower import Follower, WebSocketMissing
from .kept_output import HANDLE_OUTPUT_BYTES, KeptOutput

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator
    from types import TracebackType

    from anyio.abc import TaskGroup

    from ..models import ExecutionResult, OutputChunk
    from ..protocol.frames import Execute

__all__ = ["AsyncCommandHandle", "CommandSite", "WebSocketMissing", "attach_command", "run_command", "start_command"]

CLEAN_UP_TIMEOUT = 5.0
"""How long a cancelled `run` may take to see its command killed."""

OutputCallback: TypeAlias = "Callable[[str], Any]"


class _Owner(Protocol):
    """What a command needs of its client."""

    @property
    def task_group(self) -> TaskGroup | None: ...
    def ssl_context(self) -> ssl.SSLContext: ...


@attrs.frozen(kw_only=True)
class CommandSite:
    """How the commands of one sandbox are reached, and who owns their connections."""

    address: Address
    endpoint: Endpoint
    policy: CommandPolicy
    owner: _Owner
    drivers: set[CommandDriver]
    """Every command that is not finished: dropped handles stay attached, and closing the client lets go of all."""

    def driver(self, opening: Execute | Reconnect, **core: bool) -> CommandDriver:
        """Begin a command."""
        command = ClientCommand(opening, self.endpoint, policy=self.policy, chance=random.random, **core)
        driver = CommandDriver(command, self._connect, self.drivers.discard)
        self.drivers.add(driver)
        return driver

    async def _connect(self) -> Transport:
        context = self.owner.ssl_context() if self.address.tls else None
        return await open_transport(self.address, context)


async def run_command(
    site: CommandSite,
    frame: Execute,
    *,
    on_stdout: OutputCallback | None = None,
    on_stderr: OutputCallback | None = None,
    max_output_bytes: int | None = None,
) -> ExecutionResult:
    """Run a command to its end.

    Callbacks may be functions or coroutine functions; they see the output in order, and pings are answered while they
    run.

    Cancelling kills the command, waiting at most 5 s for its end. So does an exception of a callback.

    Raises:
        WebSocketMissing: the server has no websocket; nothing was started.
        SandboxClientError: the command timed out, could not start, or was lost.
    """
    output = KeptOutput(max_output_bytes)
    driver = site.driver(frame)
    follower = Follower(driver, output)
    try:
        if on_stdout is None and on_stderr is None:
            while await follower.next_chunks():
                pass
        else:
            async with single_error(), anyio.create_task_group() as group:
                group.start_soon(driver.pump)
                await _call_back(follower, on_stdout, on_stderr)
        return follower.outcome()
    finally:
        if not driver.finished:
            await _kill_off(driver)


async def _call_back(follower: Follower, on_stdout: OutputCallback | None, on_stderr: OutputCallback | None) -> None:
    while chunks := await follower.next_chunks():
        for chunk in chunks:
            callback = on_stdout if chunk.stream == "stdout" else on_stderr
            if callback is not None and chunk.data:
                answer = callback(chunk.data)
                if inspect.isawaitable(answer):
                    await answer


async def start_command(
    site: CommandSite, frame: Execute, *, max_output_bytes: int | None = HANDLE_OUTPUT_BYTES
) -> AsyncCommandHandle:
    """Start a command and return once it runs.

    Cancelling kills it, waiting at most 5 s for its end.

    Raises:
        WebSocketMissing: the server has no websocket; nothing was started.
        SandboxClientError: the command could not start.
    """
    output = KeptOutput(max_output_bytes)
    driver = site.driver(frame)
    handle = AsyncCommandHandle(site, driver, output)
    try:
        await handle._started()
    except BaseException:
        if not driver.finished:
            await _kill_off(driver)
        raise
    return handle


def attach_command(
    site: CommandSite,
    frame: Reconnect,
    *,
    terminal: bool = False,
    input_closed: bool = False,
    max_output_bytes: int | None = HANDLE_OUTPUT_BYTES,
) -> AsyncCommandHandle:
    """Return a handle on a command that runs, or ran; the connection is made at the handle's first use."""
    output = KeptOutput(max_output_bytes)
    driver = site.driver(frame, terminal=terminal, input_closed=input_closed)
    return AsyncCommandHandle(site, driver, output)


async def _kill_off(driver: CommandDriver) -> None:
    """See to it that a command which nobody waits for any more is dead, in bounded time."""
    try:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLEAN_UP_TIMEOUT):
            if not driver.command.finished and driver.command.may_run:
                driver.command.kill(anyio.current_time())
                await driver.kill()
                while await driver.next_batch():
                    pass
    finally:
        driver.release()


class CommandResult:
    """The awaitable behind `AsyncCommandHandle.result`. It can be awaited by many tasks, many times, or never."""

    __slots__ = ("_handle",)

    def __init__(self, handle: AsyncCommandHandle) -> None:
        self._handle = handle

    def __await__(self) -> Generator[Any, Any, ExecutionResult]:
        """Wait for the command's end. Cancelling only stops the waiting."""
        return self._handle._result().__await__()


class AsyncCommandHandle:
    """A running command.

    Iterate over it for the output as it comes, in batches (`next_batch`) or chunk by chunk (`async for`), and await
    `result` for the end. A connection that breaks is made anew from the exact byte where it broke; what the sandbox
    could not keep comes as an `OutputGap`. Cancelling an iteration or a wait never hurts the command, and loses no
    output.

    The handle stays attached until it is closed, or its client is. A handle that is dropped stays attached too, and
    its output is thrown away, so that its command runs on; `async with` and `aclose` let go at once.

    Source: wire protocol, sections 3.5 to 3.14.
    """

    MAX_AUTO_RECONNECTS: ClassVar[int] = 5
    """Connections that may be lost one after the other, without a byte of output between, before the handle gives
    up."""

    def __init__(self, site: CommandSite, driver: CommandDriver, output: KeptOutput) -> None:
        self._site = site
        self._driver = driver
        self._command = driver.command
        self._follower = Follower(driver, output)
        self._pumped = False
        self._batch: list[OutputChunk] = []
        self._iterator = iter(self._batch)
        self._offsets = {"stdout": self._command.offset("stdout"), "stderr": self._command.offset("stderr")}
        weakref.finalize(self, _abandon, driver).atexit = False

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def command_id(self) -> str:
        """The id under which any process can attach to the command."""
        return self._command.command_id

    @property
    def pid(self) -> int | None:
        """The process id inside the sandbox; None until it is known."""
        return self._command.pid

    @property
    def last_stdout_offset(self) -> int:
        """The offset in bytes of the next byte of stdout that iteration will yield."""
        return self._yielded_offset("stdout")

    @property
    def last_stderr_offset(self) -> int:
        """The offset in bytes of the next byte of stderr that iteration will yield."""
        return self._yielded_offset("stderr")

    def _yielded_offset(self, stream: str) -> int:
        yielded = len(self._batch) - length_hint(self._iterator)
        for chunk in reversed(self._batch[:yielded]):
            if chunk.stream == stream:
                return chunk.offset + len(chunk.data.encode("utf-8", "surrogatepass"))
        return self._offsets[stream]

    # --- output ------------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncCommandHandle:
        """Iterate over the output; a later loop goes on where an earlier one stopped."""
        return self

    async def __anext__(self) -> OutputChunk:
        """Return the next chunk.

        Raises:
            SandboxClientError: the command timed out, could not be attached to, or was lost. What came before was
            yielded.
        """
        for chunk in self._iterator:
            return chunk
        if not await self._fill():
            raise StopAsyncIteration
        return next(self._iterator)

    async def next_batch(self) -> list[OutputChunk]:
        """Return all the output that is there, at least one chunk, waiting for it; empty when the command is over.

        Cancelling loses nothing.

        Raises:
            SandboxClientError: as iteration does.
        """
        if not length_hint(self._iterator) and not await self._fill():
            return []
        return list(self._iterator)

    async def _fill(self) -> bool:
        self._bind()
        chunks = await self._follower.next_chunks()
        for stream in self._offsets:
            self._offsets[stream] = self._yielded_offset(stream)
        self._batch = chunks
        self._iterator = iter(chunks)
        if not chunks and self._follower.error is not None:
            raise self._follower.error.with_traceback(None)
        return bool(chunks)

    @property
    def result(self) -> CommandResult:
        """Await it for the `ExecutionResult`: all the output, as far as it was kept, and the exit code.

        Awaiting reads the output that iteration has not taken yet; use one after the other. Many tasks may await it.
        A command that was killed has a result, too: its exit code is 137 and `killed` is true.

        Raises:
            CommandTimeoutError: the command ran longer than its `timeout`.
            SandboxOperationError: it could not start, or is not known any more.
            SandboxConnectionError: it was lost; it may still run.
        """
        return CommandResult(self)

    async def _result(self) -> ExecutionResult:
        if not self._follower.over:
            self._bind()
            while await self._follower.next_chunks():
                pass
        return self._follower.outcome()

    # --- control -----------------------------------------------------------------------------------------------------

    async def kill(self) -> None:
        """Kill the command with everything that it started.

        Await `result` to see its end. Killing what has ended does nothing.

        If the connection is lost meanwhile, the kill is sent again on the next one.
        """
        if self._command.finished:
            return
        self._command.kill(anyio.current_time())
        await self._apply()
        while not self._pumped and self._command.kill_pending and not self._command.finished:
            await self._driver.read_once()

    async def send_input(self, data: str) -> None:
        """Write text to the command's standard input or terminal.

        Each text is sent at most once: if the connection breaks meanwhile, or the call is cancelled, a part may be
        missing.

        Raises:
            SandboxOperationError: the input is closed, the command is over, or too much input waits already.
        """
        try:
            self._command.send_input(data)
        except LocalProtocolError as exc:
            raise SandboxOperationError(str(exc), "input") from exc
        await self._apply()

    async def close_input(self) -> None:
        """Close the command's standard input, so that it reads the end of the file.

        With a terminal, or when done before: nothing.
        """
        if not self._command.finished:
            self._command.close_input()
            await self._apply()

    async def resize(self, cols: int, rows: int) -> None:
        """Tell the command's terminal its size in characters.

        Raises:
            LocalProtocolError: the command has no terminal.
        """
        if not self._command.finished:
            self._command.resize(cols, rows)
            await self._apply()

    async def reconnect(self) -> AsyncCommandHandle:
        """Return a new handle that goes on where this one's iteration stands."""
        frame = Reconnect(
            command_id=self.command_id, stdout_offset=self.last_stdout_offset, stderr_offset=self.last_stderr_offset
        )
        state = self._command.input_state
        return attach_command(
            self._site, frame, terminal=state is InputState.TERMINAL, input_closed=state is InputState.CLOSED
        )

    async def aclose(self) -> None:
        """Let go of the command, which runs on. Output that was not taken is dropped. Closing again does nothing."""
        self._driver.release()

    async def __aenter__(self) -> AsyncCommandHandle:
        """Return the handle itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the command."""
        await self.aclose()

    # --- the connection ----------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Have a task of the client's read, if the client has tasks; else whoever waits for output reads."""
        group = self._site.owner.task_group
        if group is not None and not self._pumped and not self._driver.finished:
            self._pumped = True
            group.start_soon(_pump, self._driver)

    async def _apply(self) -> None:
        """Make the connection that a wish needs, and send it."""
        self._bind()
        if self._command.killed:
            await self._driver.kill()
        else:
            await self._driver.flush()
        while not self._pumped and not self._command.attached and not self._command.finished:
            await self._driver.read_once()

    async def _started(self) -> None:
        """Wait until the command runs.

        Raises:
            WebSocketMissing, SandboxClientError: it does not.
        """
        self._bind()
        events = await self._driver.next_batch()
        chunks = self._follower.absorb(events) if events else []
        if self._follower.error is not None:
            self._follower.outcome()
        self._batch, self._iterator = chunks, iter(chunks)


async def _pump(driver: CommandDriver) -> None:
    """The task of a handle, in its client's group: when the client closes, it lets go of the command."""
    try:
        await driver.pump()
    finally:
        driver.release()


def _abandon(driver: CommandDriver) -> None:
    driver.abandoned = True
