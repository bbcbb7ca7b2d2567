"""Runtimes of processes of their own, which a test may kill."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox_aio.runtimes.base import DaemonAddress
from tests.runtimes.machine import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def owner(state: Path, kind: str, count: int = 3, **options: object) -> Iterator[tuple[int, dict[str, DaemonAddress]]]:
    """Run `owner.py`; yield its process id and its sandboxes. It is killed in the end."""
    arguments = [str(state), kind, str(count), *(str(value) for value in options.values())]
    passed = tuple(value for value in options.values() if isinstance(value, int))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.runtimes.owner", *arguments], cwd=ROOT, stdout=subprocess.PIPE, pass_fds=passed
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the owner did not start"
            yield process.pid, {id: DaemonAddress(**fields) for id, fields in json.loads(line).items()}
        except BaseException:
            process.kill()
            with machine(state):  # An ephemeral server ends whatever is there.
                raise
        finally:
            process.kill()
