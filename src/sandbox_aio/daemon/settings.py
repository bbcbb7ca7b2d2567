"""What the daemon is told when it starts, and how much of anything it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["DaemonLimits", "DaemonSettings"]


@attrs.frozen(kw_only=True)
class DaemonLimits:
    """Bounds of the daemon; `docs/limits.md` lists them. Sizes are bytes, durations seconds."""

    buffer_bytes: int = 1 << 20
    """Output of each stream of a command that is kept for replay."""
    running_commands: int = 4096
    finished_commands: int = 1024
    """Commands that are over and kept for their TTL; the oldest go first."""
    finished_bytes: int = 64 << 20
    """Output of all commands that are over, together."""
    connections: int = 8192
    message_bytes: int = 16 << 20
    """One websocket message from a client."""
    head_bytes: int = 64 << 10
    """The head of one HTTP request."""
    json_bytes: int = 4 << 20
    """The body of a request in JSON."""
    upload_bytes: int = 8 << 30
    """One uploaded file."""
    collected_bytes: int = 64 << 20
    """The output of one `POST /execute`, both streams together."""
    search_results: int = 1000
    """Results of a glob or a grep that sets no limit."""
    search_results_max: int = 100_000
    """Results of a glob or a grep, whatever limit it sets."""
    search_bytes: int = 16 << 20
    """Text and paths of the results of one glob or grep."""
    search_seconds: float = 10.0
    search_threads: int = 4
    tunnel_streams: int = 4096
    """Streams of one tunnel at once."""
    tunnel_window_bytes: int = 4 << 20
    """What a client may send on one stream before the program that it is for has taken it."""
    tunnel_windows_bytes: int = 64 << 20
    """By how much all streams of a tunnel may exceed the first 256 KiB of each, together."""
    idle_seconds: float = 300.0
    """How long a connection without a request is kept."""


@attrs.frozen(kw_only=True)
class DaemonSettings:
    """One sandbox, as its daemon knows it."""

    sandbox_id: str
    secret: str = attrs.field(repr=False)
    """What every request must carry in `x-sandbox-secret`."""
    work_dir: str = "/"
    """Where commands run that say nothing else."""
    user: str | None = None
    """Who runs commands that say nothing else: a name, a uid, or `uid:gid`. None: whoever the daemon is."""
    env_vars: Mapping[str, str] = attrs.field(factory=dict)
    files_root: str = "/home/user"
    """What relative paths of files are relative to, if it exists; else `work_dir` is."""
    hostname: str = ""
    limits: DaemonLimits = attrs.field(factory=DaemonLimits)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DaemonSettings:
        """Read the plain data that a runtime hands over.

        Members that are missing or None take their defaults; `limits` is a mapping from names of `DaemonLimits`.

        Raises:
            TypeError: a member is unknown, or `sandbox_id` or `secret` is missing.
        """
        members = {name: value for name, value in config.items() if value is not None}
        members["limits"] = DaemonLimits(**members.get("limits", {}))
        return cls(**members)
