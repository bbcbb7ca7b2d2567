"""Takes a command's events in batches, and makes its result of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LocalProtocolError, SandboxClientError
from ..models import ExecutionResult, OutputChunk
from ..protocol.events import CommandExited, CommandFailed, CommandStarted

if TYPE_CHECKING:
    from ..drivers.command import CommandDriver
    from ..protocol.events import CommandEvent
    from .kept_output import KeptOutput

__all__ = ["Follower", "WebSocketMissing"]


class WebSocketMissing(Exception):
    """The address has no websocket; the error says what the user would get to see."""

    def __init__(self, error: SandboxClientError) -> None:
        super().__init__(str(error))
        self.error = error


class Follower:
    """Takes a command's events and keeps what its result needs."""

    def __init__(self, driver: CommandDriver, output: KeptOutput) -> None:
        self.driver = driver
        self.output = output
        self.exit_code: int | None = None
        self.error: SandboxClientError | None = None

    @property
    def over(self) -> bool:
        return self.exit_code is not None or self.error is not None

    async def next_chunks(self) -> list[OutputChunk]:
        """Return the next output; empty when there is none any more."""
        while events := await self.driver.next_batch():
            if chunks := self.absorb(events):
                return chunks
        return []

    def absorb(self, events: list[CommandEvent]) -> list[OutputChunk]:
        """Take note of a batch and return the output in it. `CommandStarted` can only come first, an end only last."""
        last = events[-1]
        if isinstance(last, CommandExited):
            self.exit_code = last.exit_code
            events.pop()
        elif isinstance(last, CommandFailed):
            self.error = last.error
            events.pop()
        if events and type(events[0]) is CommandStarted:
            del events[0]
        chunks: list[OutputChunk] = events  # type: ignore[assignment]
        if chunks:
            self.output.add(chunks)
        return chunks

    def outcome(self) -> ExecutionResult:
        """Return the result, or raise what came instead of an exit code."""
        if self.error is not None:
            if self.driver.command.websocket_missing:
                raise WebSocketMissing(self.error) from self.error
            raise self.error.with_traceback(None)
        if self.exit_code is None:
            raise LocalProtocolError(
                "the handle was closed before the command's exit was seen;"
                f" reconnect({self.driver.command.command_id!r}) attaches to it again"
            )
        stdout, stderr = self.output.stdout, self.output.stderr
        return ExecutionResult(
            stdout.text(),
            stderr.text(),
            self.exit_code,
            killed=self.driver.command.killed,
            stdout_dropped_bytes=stdout.dropped_bytes,
            stderr_dropped_bytes=stderr.dropped_bytes,
        )
