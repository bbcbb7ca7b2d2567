"""An async client with no service behind it, in the shapes of `sandbox_aio.client`: what the generator's tests read and
what the facade's tests run. Its commands are words:

    echo TEXT       one chunk, exit code 0          lines N     N chunks in batches of 100
    exit N          exit code N                     hang        no output until it is killed
    cat             echoes input until it is closed time-out    a CommandTimeoutError after one chunk
    tidy            like hang, and takes 0.2 s to clean up when cancelled; stubborn takes 3 s
    work            runs in a worker thread         repeat TEXT one chunk with this, twenty times
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from inspect import isawaitable
from operator import length_hint
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, overload

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from sandbox_aio.errors import ClientClosedError, CommandTimeoutError, ResourceNotFoundError
from sandbox_aio.models import ExecutionResult, OutputChunk

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AsyncCommandHandle", "AsyncSandbox", "AsyncSandboxClient", "PendingSandbox"]

T = TypeVar("T")

OutputCallback = Callable[[str], Awaitable[None] | None]
DEFAULT_SHELL = "/bin/bash"


class Result(Awaitable[T]):
    """An awaitable that may be awaited again."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function

    def __await__(self) -> Generator[Any, Any, T]:
        return self._function().__await__()


class AsyncCommandHandle:
    """A command that runs.

    Example::

        async for chunk in handle:
            print(chunk.data)
        result = await handle.result
    """

    MAX_AUTO_RECONNECTS: ClassVar[int] = 5

    def __init__(self, sandbox: AsyncSandbox, command: str, start: int = 0) -> None:
        self._sandbox = sandbox
        self._command, _, self._argument = command.partition(" ")
        self._iterator: Iterator[OutputChunk] = iter([])
        self._stdout: list[str] = []
        self._input: list[str | None] = []
        self._more_input = anyio.Event()
        self._killed = anyio.Event()
        self._offset = start
        self.command_id: str = f"id-{command}"

    @property
    def pid(self) -> int | None:
        """The process id in the sandbox."""
        return 41

    @property
    def last_stdout_offset(self) -> int:
        """The offset of the next byte of stdout."""
        return self._offset

    @property
    def result(self) -> Result[ExecutionResult]:
        """Wait for the end and give the result; `await handle.result` may be repeated."""
        return Result(self._result)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputChunk:
        for chunk in self._iterator:
            return chunk
        if not await self._fill():
            raise StopAsyncIteration
        return next(self._iterator)

    async def next_batch(self) -> list[OutputChunk]:
        """Wait for output and give all there is; an empty list means that it is over."""
        if not length_hint(self._iterator):
            await self._fill()
        return list(self._iterator)

    async def _fill(self) -> bool:
        chunks = await self._next_chunks()
        self._iterator = iter(chunks)
        return bool(chunks)

    async def _next_chunks(self) -> list[OutputChunk]:
        self._sandbox._client.fills += 1
        if self._command == "time-out":
            self._command = "timed-out"
            return self._chunks("partial")
        if self._command == "timed-out":
            raise CommandTimeoutError("too slow", timeout=1.5)
        if self._command == "cat":
            while not self._input:
                await self._more_input.wait()
            text = self._input.pop(0)
            return [] if text is None else self._chunks(text)
        if self._command == "repeat" and len(self._stdout) < 20:
            return self._chunks(self._argument)
        if self._command == "work":
            await anyio.to_thread.run_sync(int)
            return []
        if self._command in ("hang", "tidy", "stubborn"):
            await self._hang()
            return []
        if self._command == "lines":
            count = min(100, int(self._argument))
            self._argument = str(int(self._argument) - count)
            return self._chunks(*(f"line {self._argument}\n" for _ in range(count)))
        argument, self._argument = self._argument, ""
        return self._chunks(argument) if self._command == "echo" and argument else []

    async def kill(self) -> None:
        """Kill the command and all its children."""
        self._sandbox._client.log.append("kill")
        self._killed.set()

    async def send_input(self, data: str) -> None:
        """Write to the command's stdin."""
        await checkpoint()
        self._put(data)

    async def close_input(self) -> None:
        """Close the command's stdin."""
        await checkpoint()
        self._put(None)

    async def reconnect(self) -> AsyncCommandHandle:
        """Give a new handle, at the offset of this one."""
        return AsyncCommandHandle(self._sandbox, f"{self._command} {self._argument}", self._offset)

    async def aclose(self) -> None:
        """Detach; the command runs on."""
        await checkpoint()
        self._sandbox._client.log.append("detach")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _put(self, text: str | None) -> None:
        self._input.append(text)
        self._more_input.set()
        self._more_input = anyio.Event()

    def _chunks(self, *texts: str) -> list[OutputChunk]:
        chunks = []
        for text in texts:
            chunks.append(OutputChunk("stdout", text, self._offset))
            self._offset += len(text)
        self._stdout += texts
        return chunks

    async def _hang(self) -> None:
        try:
            with anyio.fail_after(30):
                await self._killed.wait()
        except BaseException:
            if self._command != "hang":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.2 if self._command == "tidy" else 3)
            self._sandbox._client.log.append("unwound")
            raise

    async def _result(self) -> ExecutionResult:
        command, argument = self._command, self._argument
        while await self._next_chunks():
            await checkpoint()
        return ExecutionResult("".join(self._stdout), "", int(argument) if command == "exit" else 0)


class AsyncSandbox:
    """A sandbox that commands run in.

    Get one with `AsyncSandboxClient.sandbox`; `async with` deletes it at the end.
    """

    name: str
    """Unique in its workspace."""

    def __init__(self, client: AsyncSandboxClient, name: str, *, owned: bool) -> None:
        self._client = client
        self._owned = owned
        self.name = name

    def __repr__(self) -> str:
        return f"AsyncSandbox({self.name!r})"

    @overload
    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        shell: str = DEFAULT_SHELL,
        env: Mapping[str, str] | None = None,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        wait: Literal[True] = True,
    ) -> ExecutionResult: ...

    @overload
    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        shell: str = DEFAULT_SHELL,
        env: Mapping[str, str] | None = None,
        on_stdout: None = None,
        on_stderr: None = None,
        wait: Literal[False],
    ) -> AsyncCommandHandle: ...

    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        shell: str = DEFAULT_SHELL,
        env: Mapping[str, str] | None = None,
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        wait: bool = True,
    ) -> ExecutionResult | AsyncCommandHandle:
        r"""Run a command, and wait for its end unless `wait` is false.

        Cancelling a waited run kills its command::

            result = await sandbox.run("printf 'a\n'")
        """
        self._client.log.append(f"run {command}")
        handle = AsyncCommandHandle(self, command)
        if not wait:
            return handle
        if on_stdout is None:
            return await handle.result
        async for chunk in handle:
            answer = on_stdout(chunk.data)
            if isawaitable(answer):
                await answer
        return await handle.result

    async def read(self, path: str, *, timeout: float = 60) -> bytes:
        """Read a file.

        Raises:
            ResourceNotFoundError: there is no such file.
        """
        await checkpoint()
        raise ResourceNotFoundError(f"no such file: {path}", resource_type="file")

    def reconnect(self, command_id: str) -> AsyncCommandHandle:
        """Attach to a command again."""
        return AsyncCommandHandle(self, command_id.removeprefix("id-"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._owned:
            with anyio.CancelScope(shield=True):
                await self._client.delete_sandbox(self.name)


class PendingSandbox:
    """What `AsyncSandboxClient.sandbox` gives: await it, or enter it."""

    def __init__(self, client: AsyncSandboxClient, name: str) -> None:
        self._client = client
        self._name = name

    def __await__(self) -> Generator[Any, Any, AsyncSandbox]:
        return self._create().__await__()

    async def __aenter__(self) -> AsyncSandbox:
        self._sandbox = await self
        return self._sandbox

    async def __aexit__(self, *exc_info: object) -> None:
        await self._sandbox.__aexit__(*exc_info)

    async def _create(self) -> AsyncSandbox:
        self._client.log.append(f"create {self._name}")
        await anyio.sleep(0.2 if self._name == "slow" else 0)
        return AsyncSandbox(self._client, self._name, owned=True)


class AsyncSandboxClient:
    """The way to a sandbox service.

    ::

        async with AsyncSandboxClient() as client, client.sandbox() as sandbox:
            await sandbox.run("echo hi")
    """

    def __init__(self, *, api_endpoint: str | None = None, timeout: float = 10.0) -> None:
        self.api_endpoint: str | None = api_endpoint
        self.log: list[str] = []
        self.fills: int = 0
        self._closed = False

    def sandbox(self, snapshot_id: str | None = None, *, name: str = "box") -> PendingSandbox:
        """Create a sandbox that is deleted at the end of `async with`."""
        return PendingSandbox(self, name)

    async def get_sandbox(self, name: str) -> AsyncSandbox:
        """Get a sandbox by its name."""
        await checkpoint()
        return AsyncSandbox(self, name, owned=False)

    async def list_sandboxes(self) -> list[AsyncSandbox]:
        """List all sandboxes."""
        await checkpoint()
        return [AsyncSandbox(self, name, owned=False) for name in ("a", "b")]

    async def delete_sandbox(self, name: str) -> None:
        """Delete a sandbox."""
        if self._closed:
            raise ClientClosedError("closed")
        await anyio.sleep(0.01)
        self.log.append(f"delete {name}")

    async def aclose(self) -> None:
        """Close every connection."""
        await checkpoint()
        self._closed = True
        self.log.append("closed")

    async def __aenter__(self) -> Self:
        await checkpoint()
        self.log.append("open")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
