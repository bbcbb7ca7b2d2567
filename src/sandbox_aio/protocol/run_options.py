"""From what a caller says to `run()` to the frame that says it to the daemon (wire protocol, sections 3.6 and 3.14)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .frames import Execute
from .http_requests import run_config_payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..models import RunConfig

__all__ = ["execute_frame"]


def execute_frame(
    command: str,
    *,
    command_id: str,
    timeout: float,
    env: Mapping[str, str] | None,
    cwd: str | None,
    run_config: RunConfig | Mapping[str, Any] | None,
    close_input: bool | None,
    shell: str,
    idle_timeout: float,
    kill_on_disconnect: bool,
    ttl_seconds: float,
    pty: bool,
    wait: bool,
    callbacks: bool,
) -> Execute:
    """Check the arguments of `run()` and make the frame.

    Standard input is closed from the start when nobody could write to it, which is when the call waits for the command;
    `close_input` decides otherwise. A terminal's input is never closed: its end of file is control-D. The wire knows
    whole seconds only, so that fractions are rounded up.

    Args:
        callbacks: Whether the caller gave any.

    Raises:
        ValueError, TypeError: The arguments make no sense, by themselves or together.
    """
    if not wait and callbacks:
        raise ValueError("on_stdout and on_stderr need wait=True; with wait=False, iterate over the handle")
    if run_config is not None and (env is not None or cwd is not None):
        raise ValueError("run_config excludes env and cwd: put them into its env_vars and work_dir")
    _check_text("command", command)
    _check_text("shell", shell)
    if cwd is not None:
        _check_text("cwd", cwd)
    for name, value in (env or {}).items():
        _check_text("the name of a variable", name)
        _check_text(f"the variable {name!r}", value)
        if not name or "=" in name:
            raise ValueError(f"{name!r} is not the name of an environment variable")
    payload = run_config_payload(run_config) if run_config is not None else None
    close_stdin = not pty and (wait if close_input is None else close_input)
    return Execute(
        command=command,
        command_id=command_id,
        timeout_seconds=_seconds("timeout", timeout, never=False),
        shell=shell,
        idle_timeout_seconds=_seconds("idle_timeout", idle_timeout, never=True),
        kill_on_disconnect=kill_on_disconnect,
        ttl_seconds=_seconds("ttl_seconds", ttl_seconds, never=True),
        env=dict(env or {}),
        cwd=cwd,
        run_config=payload or None,
        close_stdin=close_stdin,
        pty=pty,
    )


def _check_text(what: str, value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{what} holds a NUL character")


def _seconds(name: str, value: float, *, never: bool) -> int:
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if never and value == -1:
        return -1
    if not 0 <= value < 2**31:
        raise ValueError(f"{name} must be a number of seconds{', or -1 for never' if never else ''}, not {value!r}")
    return math.ceil(value)
