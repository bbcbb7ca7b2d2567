"""Commands on a server that has no websocket: one request, one answer at the end (wire protocol, section 3.1)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..drivers.http import HttpDriver
    from ..models import ExecutionResult
    from ..protocol.file_requests import DataPlane
    from ..protocol.frames import Execute
    from .command import OutputCallback

__all__ = ["run_over_http"]


async def run_over_http(
    http: HttpDriver,
    plane: DataPlane,
    frame: Execute,
    *,
    on_stdout: OutputCallback | None,
    on_stderr: OutputCallback | None,
    headers: Mapping[str, str] | None,
) -> ExecutionResult:
    """Run a command and call the callbacks once, at its end.

    Cancelling drops the connection; the server decides whether the command runs on to its timeout.

    Raises:
        ValueError: The command needs what only a websocket can do.
        CommandTimeoutError: It ran longer than its timeout.
        SandboxOperationError: It could not start.
    """
    result = await http.call(plane.execute(frame), headers)
    for callback, text in ((on_stdout, result.stdout), (on_stderr, result.stderr)):
        if callback is not None and text:
            answer = callback(text)
            if inspect.isawaitable(answer):
                await answer
    return result
