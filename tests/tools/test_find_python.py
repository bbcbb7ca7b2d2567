"""`tools/find_python.sh` and `tools/install_system.sh`, on machines made of scripts that pretend to be programs."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FIND = (ROOT / "tools/find_python.sh").read_text()
INSTALL = (ROOT / "tools/install_system.sh").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with our two scripts, and `bin`, which is the whole PATH of what is run there."""
    (tmp_path / "bin").mkdir()
    for tool in ("dirname", "id", "sh"):
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    find = FIND.replace(" /usr/local/bin/python3 /usr/bin/python3", "")
    for name, text in [("find_python.sh", find), ("install_system.sh", INSTALL)]:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def add(machine: Path, program: str, script: str) -> None:
    """Install `script` as `program`."""
    path = machine / "bin" / program
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(machine: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run one of our two scripts; that which installs, for what the demo needs."""
    command = [str(machine / script), *(["python"] if script == "install_system.sh" else [])]
    environment = {"PATH": str(machine / "bin")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_newest_wins(machine: Path) -> None:
    add(machine, "python3", "echo 11 /usr/bin/python3.11")
    add(machine, "python3.13", "echo 13 '/opt/with space/python'")
    add(machine, "python3.12", "echo 12 /usr/bin/python3.12")
    assert run(machine, "find_python.sh").stdout == "/opt/with space/python\n"


def test_what_is_too_old_or_does_not_run_is_passed_over(machine: Path) -> None:
    add(machine, "python3.14", "echo there is no such version here; exit 127")
    add(machine, "python3.13", "exit 1")
    add(machine, "python3", "echo 0 /usr/bin/python3")
    found = run(machine, "find_python.sh")
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")


def test_nothing_is_installed_where_nothing_is_missing(machine: Path) -> None:
    add(machine, "python3", "echo 11 /usr/bin/python3.11")
    add(machine, "apt-get", "exit 1")
    assert run(machine, "install_system.sh").returncode == 0


def test_an_ordinary_user_is_told_what_root_must_run(machine: Path) -> None:
    add(machine, "id", "echo 1000")
    refused = run(machine, "install_system.sh")
    assert refused.returncode == 1
    assert "make deps" in refused.stderr


def test_root_installs_what_is_missing(machine: Path) -> None:
    add(machine, "id", "echo 0")
    python = machine / "bin/python3"
    script = f"""#!/bin/sh
case "$1" in install) printf '#!/bin/sh\\necho 11 /usr/bin/python3.11\\n' >{python}; /bin/chmod +x {python} ;; esac"""
    add(machine, "apt-get", script)
    assert run(machine, "install_system.sh").returncode == 0


def test_a_system_with_an_old_python_is_told_what_to_do(machine: Path) -> None:
    add(machine, "id", "echo 0")
    add(machine, "apt-get", "exit 0")
    refused = run(machine, "install_system.sh")
    assert refused.returncode == 1
    assert "Ubuntu 22.04" in refused.stderr


def test_where_the_tests_run_nothing_is_missing_and_nothing_is_said() -> None:
    command = [str(ROOT / "tools/install_system.sh"), "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
