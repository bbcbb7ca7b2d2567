"""The marks of commands (decision record 0201), in processes of their own, since a limit that is lowered stays low."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, resource, sys
sys.path[:] = json.loads(sys.argv[1])
from sandbox_aio.daemon.marks import MarksExhausted, TreeKiller
if sys.argv[2] != "-1":
    resource.setrlimit(15, (int(sys.argv[2]), int(sys.argv[2])))
before = resource.getrlimit(15)[1]
marks, killer = [], TreeKiller()
try:
    for _ in range(5000):
        marks.append(killer.issue())
except MarksExhausted as exc:
    print(exc, file=sys.stderr)
print(json.dumps([os.getpid(), before, resource.getrlimit(15), marks]))
"""


def issue(limit: int) -> tuple[int, int, tuple[int, int], list[int], str]:
    """Issue up to 5000 marks in a process with this limit; return its id, its limit before and after, marks and
    errors.
    """
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=True)
    pid, before, after, marks = json.loads(done.stdout)
    return pid, before, tuple(after), marks, done.stderr


def test_a_daemon_has_marks_of_its_own_and_each_command_a_span_of_them() -> None:
    pid, before, after, marks, _ = issue(-1)
    top, span = ((1 << 62) - pid * (1 << 39), 4096) if before == -1 else (before, 1)
    assert marks[:4095] == [top - span * count for count in range(1, 4096)]
    assert after == (marks[-1], marks[-1])


@pytest.mark.parametrize("limit", [(1 << 62) - (1 << 39), 200_000])
def test_inside_a_command_of_another_daemon_the_marks_stay_in_its_span(limit: int) -> None:
    _, _, _, marks, error = issue(limit)

    assert marks == [limit - count for count in range(1, 4096)]
    assert "nested too deeply" in error


def test_a_limit_that_leaves_no_room_for_marks_is_said() -> None:
    _, _, _, marks, error = issue(1)

    assert marks == []
    assert error
