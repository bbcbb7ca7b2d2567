"""The init that is prepared before it is wanted."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from tests.runtimes.host import eventually
from tests.runtimes.machine import machine

if TYPE_CHECKING:
    from tests.runtimes.machine import Machine


def inits(made: Machine, name: str) -> list[int]:
    """The children of a runtime's zygote that are the first process of a sandbox and bear this name."""
    process = made.runtime._keeper._process
    assert process is not None
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            if f"Name:\t{name}\n" in status and "\t1\n" in status[status.index("NSpid") :].split("NSpgid")[0]:
                found.append(int(pid))
    return found


def spare(made: Machine) -> int:
    """The prepared init, once there is one."""
    assert eventually(lambda: len(inits(made, "sandbox-spare")) == 1)
    return inits(made, "sandbox-spare")[0]


def test_a_start_uses_what_was_prepared_and_prepares_the_next(tmp_path: Path) -> None:
    with machine(tmp_path / "state") as made:
        prepared = spare(made)
        with made.sandbox() as sandbox:
            assert inits(made, "sandbox-daemon") == [prepared]
            assert spare(made) != prepared
            with made.sandbox() as other:
                assert sandbox.sh("hostname; echo x > /tmp/x") == other.sh("hostname; ls /tmp") == "box"
    assert not Path(f"/proc/{prepared}").exists()


def test_a_start_does_without_when_the_prepared_one_was_killed(tmp_path: Path) -> None:
    with machine(tmp_path / "state") as made:
        prepared = spare(made)
        os.kill(prepared, signal.SIGKILL)
        assert eventually(lambda: not Path(f"/proc/{prepared}").exists())
        with made.sandbox() as sandbox:
            assert sandbox.sh("echo well") == "well"
        assert made.exits == []


def test_a_prepared_init_does_not_keep_mounts_of_the_host(tmp_path: Path) -> None:
    """It still has the host's mounts, as a slave: what is unmounted on the host is unmounted there."""
    with machine(tmp_path / "state") as made:
        prepared = spare(made)
        if os.geteuid() == 0:
            mounts = Path(f"/proc/{prepared}/mountinfo").read_text()
            assert "shared:" not in mounts
