"""The recipe of `docs/how-to/ssh.md`, run as it stands there but for the local port, and what editors need besides."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.conftest import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = Path(__file__).parents[2] / "docs/how-to/ssh.md"
DEADLINE = 30.0
READY = "Press Enter to end."


def blocks(language: str, port: int) -> list[str]:
    """The recipe's blocks of code in `language`, with `port` for the one that it names."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", RECIPE.read_text(), re.MULTILINE | re.DOTALL)
    return [block.replace("2222", str(port)) for block in found]


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's directory."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture
def program(environment: None, port: int, folder: Path) -> Iterator[None]:
    """The recipe's program, while it waits for Enter."""
    (text,) = blocks("python", port)
    (folder / "ssh_sandbox.py").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-u", "ssh_sandbox.py"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            seen = []
            for line in process.stdout:
                seen.append(line)
                if READY in line:
                    break
            assert READY in seen[-1], "".join(seen)
            yield
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.wait(DEADLINE) == 0, process.stdout.read()
        finally:
            process.send_signal(signal.SIGINT)


def run(command: str, folder: Path) -> str:
    """What a command prints. It gets no input and no agent."""
    done = subprocess.run(
        command, shell=True, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.root
def test_the_recipe(program: None, port: int, folder: Path) -> None:
    first, second = blocks("sh", port)
    assert run(first, folder).startswith("sandbox-")
    assert re.search(r"^127\.0\.0\.1 \d+ 127\.0\.0\.1 2022\nPython 3\.", run(f"set -e\n{second}", folder))
    assert (folder / "back.py").read_text() == (folder / "ssh_sandbox.py").read_text()

    (folder / "config").write_text(f"Include {folder}/sandbox-ssh/config\n")  # as in ~/.ssh/config
    ssh = "ssh -F config"
    assert run(f"{ssh} -tt sandbox 'tty; echo $PATH'", folder).startswith("/dev/pts/")
    assert "/opt/venv/bin" in run(f"{ssh} sandbox 'echo $PATH'", folder)
    assert run(f"{ssh} sandbox 'head -c 3000000 /dev/zero' | wc -c", folder) == "3000000\n"
    assert run(f"{ssh} -W 127.0.0.1:2022 sandbox | head -c 8", folder) == "SSH-2.0-"
