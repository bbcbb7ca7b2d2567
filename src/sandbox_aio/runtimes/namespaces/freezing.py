"""Stopping every process of a sandbox for a moment, so that its files are those of one instant.

All processes of a sandbox descend from its init. They are stopped from the init down, and continued from the leaves
up, so that no shell sees its child stopped: it is stopped itself meanwhile, and what it would have been told is taken
back by the continuing. A process that somebody else had stopped stays as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final

__all__ = ["FreezeError", "descendants", "freeze", "thaw"]

PATIENCE_S: Final = 2.0
"""How long the processes of one sandbox may take to stop."""
ATTEMPT_S: Final = 0.1
"""How long one attempt may take. A process that waits for its child to begin a program cannot stop while that child
is stopped: then both go on, and are stopped anew."""
PAUSE_S: Final = 0.002


class FreezeError(Exception):
    """A sandbox does not stop; nothing of it is stopped any more."""


def freeze(init: int) -> list[int]:
    """Stop a process and all that descend from it; return the process ids, parents first, for `thaw`.

    Blocks: a few milliseconds. Raises FreezeError when it does not come to rest.
    """
    deadline = time.monotonic() + PATIENCE_S
    while (stopped := _attempt(init)) is None:
        if time.monotonic() > deadline:
            raise FreezeError(f"the processes of the sandbox did not stop within {PATIENCE_S:g} s")
        time.sleep(PAUSE_S)
    return stopped


def _attempt(init: int) -> list[int] | None:
    """Stop everything, or nothing."""
    stopped: list[int] = []
    deadline = time.monotonic() + ATTEMPT_S
    try:
        while time.monotonic() < deadline:
            new = [pid for pid, state in descendants(init) if pid not in stopped and state not in "TtZX"]
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
            if not new and all(_is_at_rest(pid) for pid in stopped):
                return stopped
    except BaseException:
        thaw(stopped)
        raise
    thaw(stopped)
    return None


def thaw(stopped: list[int]) -> None:
    """Let the processes go on that `freeze` has stopped."""
    for pid in reversed(stopped):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def descendants(init: int) -> list[tuple[int, str]]:
    """A process and all below it with their states, parents before children."""
    children: dict[int, list[tuple[int, str]]] = {}
    found: list[tuple[int, str]] = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (status := _status(f"/proc/{name}/stat")) is not None:
            state, parent, threads = status
            if state == "Z" and threads > 1:
                state = "R"  # Its first thread has ended, and others run.
            children.setdefault(parent, []).append((int(name), state))
            if int(name) == init:
                found.append((init, state))
    for pid, _ in found:  # It grows while it is walked.
        found += children.get(pid, ())
    return found


def _is_at_rest(pid: int) -> bool:
    """Whether no thread of a process runs any more."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return True
    states = (_status(f"/proc/{pid}/task/{thread}/stat") for thread in threads)
    return all(status is None or status[0] in "TtZX" for status in states)


def _status(path: str) -> tuple[str, int, int] | None:
    """The state, the parent and the number of threads of a process."""
    try:
        with open(path, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[17])
