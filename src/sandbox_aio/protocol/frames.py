"""The messages of one command session (wire protocol, section 3.3), as frozen values.

Client to daemon: `Execute`, `Reconnect`, `Input`, `CloseStdin`, `Kill`, `Resize`. Daemon to client: `Started`,
`Output`, `Exit`, `ErrorReply`. Durations are seconds, offsets are bytes. `Output` is the chunk that users see:
`OutputChunk`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from ..models import OutputChunk as Output

__all__ = [
    "LARGEST_INTEGER",
    "UNKNOWN_OFFSET",
    "ClientFrame",
    "CloseStdin",
    "ErrorReply",
    "Execute",
    "Exit",
    "Input",
    "Kill",
    "Output",
    "Reconnect",
    "Resize",
    "ServerFrame",
    "Started",
    "Stream",
]

LARGEST_INTEGER = 2**63 - 1
"""No number of the protocol is larger."""

UNKNOWN_OFFSET = -1
"""The `offset` of an `Output` whose daemon left it out."""

Stream: TypeAlias = Literal["stdout", "stderr"]


@attrs.frozen(kw_only=True)
class Execute:
    """Start a command, or attach to the one that already bears `command_id`."""

    command: str | None
    """A line for the shell. None, together with `pty`, asks for an interactive shell."""
    command_id: str | None
    """Opaque; the daemon makes one up if it is None. Sending it again never starts a second command."""
    timeout_seconds: float = 60
    """Wall clock from the start; 0 means none."""
    shell: str = "/bin/bash"
    idle_timeout_seconds: float = 300
    """How long the command may run with nobody attached; -1 means for ever."""
    kill_on_disconnect: bool = False
    ttl_seconds: float = 600
    """How long a finished command's output is kept; -1 means for ever."""
    env: Mapping[str, str] = attrs.field(factory=dict)
    cwd: str | None = None
    run_config: Mapping[str, Any] | None = None
    """`user`, `work_dir`, `env_vars` (section 1.12); excludes `env` and `cwd`."""
    close_stdin: bool = False
    pty: bool = False


@attrs.frozen(kw_only=True)
class Reconnect:
    """Attach to a command, from these offsets on."""

    command_id: str
    stdout_offset: int = 0
    stderr_offset: int = 0


@attrs.frozen(kw_only=True)
class Input:
    """Text for standard input, or for the terminal."""

    data: str


@attrs.frozen(kw_only=True)
class CloseStdin:
    """Half-close standard input."""


@attrs.frozen(kw_only=True)
class Kill:
    """SIGKILL for the whole command."""


@attrs.frozen(kw_only=True)
class Resize:
    """The size of the caller's terminal, in characters."""

    cols: int
    rows: int


@attrs.frozen(kw_only=True)
class Started:
    """The command runs (or ran) under this id; always the first frame of an execution."""

    command_id: str
    pid: int | None


@attrs.frozen(kw_only=True)
class Exit:
    """The command ended; it follows every byte of output."""

    exit_code: int


@attrs.frozen(kw_only=True)
class ErrorReply:
    """The command could not start, timed out, or is unknown (section 3.4)."""

    error: str
    error_type: str


ClientFrame: TypeAlias = Execute | Reconnect | Input | CloseStdin | Kill | Resize
ServerFrame: TypeAlias = Started | Output | Exit | ErrorReply
