"""The programs in `examples/` do what they say, on a server of their own that they start themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    """Return what the program `name` prints. Raises `AssertionError` unless it ends well and is silent on stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH", "LANGCHAIN"))}
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout


def test_hello_sync() -> None:
    assert re.fullmatch(r"Hello from [\w-]+\n", run("hello_sync.py"))


def test_hello_async() -> None:
    assert run("hello_async.py") == "1\n2\n3\n"


def test_trio_fleet() -> None:
    *done, left = run("trio_fleet.py").splitlines()
    assert sorted(done) == [f"member {n} is done" for n in range(0, 10, 2)]
    assert left == "left: 0 sandboxes"


def test_snapshots() -> None:
    assert run("snapshots.py").splitlines() == ["42", "42", "42", "tags: stable v1"]


def test_demo() -> None:
    output = run("demo.py")
    assert output.count("streamed: 'line 3\\n'") == 3
    assert output.count("fifty commands at once") == 3
    assert output.count("process 2 saw the end: exit code 3") == 2
    assert output.endswith("That was all of it.\n")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_program_is_tested(path: Path) -> None:
    assert f"def test_{path.stem}(" in Path(__file__).read_text()
