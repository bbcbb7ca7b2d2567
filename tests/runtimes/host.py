"""Looking at the host from a test."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def eventually(look: Callable[[], T], seconds: float = 10.0) -> T:
    """Look until something is seen that counts as true, for some seconds at the most; return what was seen last."""
    deadline = time.monotonic() + seconds
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return seen


def processes_named(*words: str) -> list[int]:
    """Return the processes on this machine whose name or command line has every one of these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "comm").read_text() + (folder / "cmdline").read_bytes().decode(errors="replace")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if all(word in text for word in words) and state != "Z":
            found.append(int(folder.name))
    return found
