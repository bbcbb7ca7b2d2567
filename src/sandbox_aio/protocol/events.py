"""What the core tells its user.

Output travels as `OutputChunk` and `OutputGap` (see `sandbox_aio.models`); the rest is here.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from ..errors import SandboxClientError
from ..models import OutputChunk, OutputGap

__all__ = ["CommandEvent", "CommandExited", "CommandFailed", "CommandStarted", "OutputChunk", "OutputGap"]


@attrs.frozen(kw_only=True)
class CommandStarted:
    """The daemon confirmed that the command runs. Seen once, however often the connection is lost."""

    command_id: str
    pid: int | None


@attrs.frozen(kw_only=True)
class CommandExited:
    """The command ended; every byte of its output came before."""

    exit_code: int


@attrs.frozen(kw_only=True)
class CommandFailed:
    """There will be no exit code; `error` is what the user gets to see."""

    error: SandboxClientError


CommandEvent: TypeAlias = CommandStarted | OutputChunk | OutputGap | CommandExited | CommandFailed
