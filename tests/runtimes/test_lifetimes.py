"""Who outlives whom: servers, zygotes and daemons that are killed."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from tests.runtimes.host import eventually, processes_named
from tests.runtimes.machine import Machine, ask, machine
from tests.runtimes.owners import owner


def zygote_of(state: Path) -> int:
    """The zygote that holds the lock in a state directory."""
    for pid in processes_named("sandbox-zygote"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # Others' zygotes are closed to us.
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # It may close one while we look.
                    if link.readlink() == state / "zygote.lock":
                        return pid
    raise AssertionError("no zygote")


def daemons_of(state: Path) -> list[int]:
    """The first processes of the sandboxes of one zygote."""
    children = Path(f"/proc/{zygote_of(state)}/task/{zygote_of(state)}/children").read_text()
    return alive([int(pid) for pid in children.split()])


def alive(pids: list[int]) -> list[int]:
    """Which of these processes still run."""
    return [pid for pid in pids if pid in processes_named("sandbox-daemon")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_everything_ends_with_the_owner_of_an_ephemeral_runtime(tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "state"
    with owner(state, "ephemeral") as (pid, addresses):
        for address in addresses.values():
            ask(address, argv=["sh", "-c", "setsid sleep 86398 >/dev/null 2>&1 & mkdir -m 0 /tmp/x"])
        daemons = daemons_of(state)
        assert len(daemons) == 3
        os.kill(pid, number)
    assert eventually(lambda: not alive(daemons))
    assert eventually(lambda: not state.exists())
    assert processes_named("sleep", "86398") == []


def test_everything_ends_with_the_descriptor_that_it_should_die_with(tmp_path: Path) -> None:
    state = tmp_path / "state"
    read, write = os.pipe()
    try:
        with owner(state, "ephemeral", die_with=read):
            daemons = daemons_of(state)
            os.close(write)
            write = -1
            assert eventually(lambda: not alive(daemons))
    finally:
        os.close(read)
        if write != -1:
            os.close(write)
    assert eventually(lambda: not state.exists())


def test_daemons_die_with_an_ephemeral_zygote(tmp_path: Path) -> None:
    with machine(tmp_path / "state") as made, made.sandbox() as sandbox:
        sandbox.sh("setsid sleep 86397 >/dev/null 2>&1 &")
        daemons = daemons_of(made.state_dir)
        os.kill(zygote_of(made.state_dir), signal.SIGKILL)
        assert eventually(lambda: not alive(daemons))
        assert eventually(lambda: made.exits)
        assert made.exits[0][0] == sandbox.id
        assert "zygote" in made.exits[0][1]
        assert eventually(lambda: processes_named("sleep", "86397") == [])
        address = made.run(made.runtime.start(sandbox.id))  # A new zygote serves it.
        assert ask(address, argv=["true"])["code"] == 0


def test_server_and_zygote_killed_together_leave_no_process_and_the_next_server_removes_the_rest(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    with owner(state, "ephemeral") as (pid, _):
        daemons, zygote = daemons_of(state), zygote_of(state)
        os.kill(zygote, signal.SIGSTOP)  # So that it cannot clean up.
        os.kill(pid, signal.SIGKILL)
        os.kill(zygote, signal.SIGKILL)
    assert eventually(lambda: not alive(daemons))
    assert len(list((state / "sandboxes").iterdir())) == 3
    with machine(state) as made:
        assert made.run(made.runtime.list()) == []
        assert list((state / "sandboxes").iterdir()) == []
        assert list((state / "s").iterdir()) == []
    assert not state.exists()


def test_persistent_sandboxes_outlive_their_server_and_are_found_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with owner(state, "persistent") as (pid, addresses):
        for address in addresses.values():
            ask(address, argv=["sh", "-c", "echo still > /tmp/here; setsid sleep 1000 >/dev/null 2>&1 &"])
        os.kill(pid, signal.SIGKILL)
    with machine(state, ephemeral=False) as made:
        found = {status.id: status.state for status in made.run(made.runtime.list())}
        assert found == dict.fromkeys(addresses, "running")
        for id, address in addresses.items():
            assert made.run(made.runtime.address(id)) == address
            output = ask(address, argv=["sh", "-c", "cat /tmp/here /proc/[0-9]*/comm"])["output"]
            assert output.startswith("still")
            assert "sleep" in output
        first, *_ = addresses
        ask(addresses[first], exit=3)
        assert eventually(lambda: made.exits)
        assert made.exits[0][0] == first
    assert not state.exists()


def test_an_ephemeral_server_ends_what_a_persistent_one_left(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with owner(state, "persistent"):
        daemons = daemons_of(state)
    assert alive(daemons) == daemons
    with machine(state) as made:
        assert alive(daemons) == []
        assert made.run(made.runtime.list()) == []


@pytest.mark.parametrize("ephemeral", [True, False])
def test_persistent_daemons_without_a_zygote_are_found_and_ended(tmp_path: Path, ephemeral: bool) -> None:
    state = tmp_path / "state"
    with owner(state, "persistent") as (_, addresses):
        daemons = daemons_of(state)
        os.kill(zygote_of(state), signal.SIGKILL)
    assert alive(daemons) == daemons
    with machine(state, ephemeral=ephemeral) as made:
        assert alive(daemons) == []
        states = {status.id: status.state for status in made.run(made.runtime.list())}
        assert states == ({} if ephemeral else dict.fromkeys(addresses, "stopped"))
        for id in states:
            assert ask(made.run(made.runtime.start(id)), argv=["true"])["code"] == 0


def test_letting_go_of_a_persistent_runtime_leaves_it_running(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = Machine(state, ephemeral=False)
    try:
        first.open()
        with first.sandbox() as sandbox:
            first.run(first.runtime.aclose(destroy=False))
            assert sandbox.sh("echo on") == "on"
            with machine(state, ephemeral=False) as second:
                assert second.run(second.runtime.address(sandbox.id)) == sandbox.address
    finally:
        first.halt()
    assert not state.exists()


def test_two_servers_cannot_share_a_state_directory(tmp_path: Path) -> None:
    with machine(tmp_path / "state") as first:
        second = Machine(first.state_dir)
        try:
            with pytest.raises(RuntimeFailure, match=r"another server is using .*state.*--state-dir"):
                second.open()
        finally:
            second.halt()
        with first.sandbox() as sandbox:
            assert sandbox.sh("echo fine") == "fine"


def test_the_zygote_reaps_what_it_started(machine: Machine) -> None:
    """Trap (f): inits whose ushers have ended are its children, not those of the host's first process."""
    for _ in range(3):
        with machine.sandbox() as sandbox:
            sandbox.sh("true")
            (daemon,) = daemons_of(machine.state_dir)
            parent = Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1]
            assert int(parent) == zygote_of(machine.state_dir)
    assert daemons_of(machine.state_dir) == []
