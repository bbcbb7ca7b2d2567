"""Creating, starting, stopping and destroying sandboxes, one and many."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from sandbox_aio.runtimes.namespaces import HOST_SNAPSHOT_ID, NamespacesRuntime
from tests.runtimes.host import eventually, processes_named
from tests.runtimes.machine import ENTRY, ask, machine, spec

if TYPE_CHECKING:
    from tests.runtimes.machine import Machine, Sandbox


def test_the_snapshot_host_is_offered(machine: Machine) -> None:
    (snapshot,) = machine.run(machine.runtime.snapshots())
    assert (snapshot.id, snapshot.name, snapshot.tags) == (HOST_SNAPSHOT_ID, "host", ("latest",))
    assert snapshot.work_dir == "/home/user"
    assert snapshot.env_vars["PATH"].startswith("/opt/venv/bin:")
    assert snapshot.fs_capacity_bytes > 1 << 20


def test_a_sandbox_keeps_its_files_when_it_is_stopped_and_started(sandbox: Sandbox, machine: Machine) -> None:
    sandbox.sh(
        "echo kept > /home/user/file; rm /etc/profile; mkdir -p /opt/new/deep; nohup sleep 1000 >/dev/null 2>&1 &"
    )
    machine.run(machine.runtime.stop(sandbox.id))
    assert machine.run(machine.runtime.address(sandbox.id)) is None
    assert [status.state for status in machine.run(machine.runtime.list()) if status.id == sandbox.id] == ["stopped"]
    machine.run(machine.runtime.stop(sandbox.id))
    address = machine.run(machine.runtime.start(sandbox.id))
    assert ask(address, argv=["cat", "/home/user/file"])["output"] == "kept\n"
    assert ask(address, argv=["ls", "/etc/profile"])["code"] != 0
    assert ask(address, argv=["ls", "-d", "/opt/new/deep"])["code"] == 0
    assert "sleep" not in ask(address, argv=["sh", "-c", "cat /proc/[0-9]*/comm"])["output"]


def test_every_call_may_be_made_again(machine: Machine) -> None:
    runtime, wanted = machine.runtime, spec()
    machine.run(runtime.create(wanted))
    machine.run(runtime.create(wanted))
    assert machine.run(runtime.address(wanted.id)) is None
    assert [status.state for status in machine.run(runtime.list()) if status.id == wanted.id] == ["created"]
    first = machine.run(runtime.start(wanted.id))
    assert machine.run(runtime.start(wanted.id)) == first == machine.run(runtime.address(wanted.id))
    assert first.secret == "a secret"
    assert ask(first, argv=["true"])["code"] == 0
    for _ in range(2):
        machine.run(runtime.stop(wanted.id))
    for _ in range(2):
        machine.run(runtime.destroy(wanted.id))
    assert wanted.id not in {status.id for status in machine.run(runtime.list())}
    with pytest.raises(RuntimeFailure, match="there is no sandbox"):
        machine.run(runtime.start(wanted.id))


def test_stopping_kills_every_process(sandbox: Sandbox, machine: Machine) -> None:
    """Also those in other sessions whose parents are gone."""
    sandbox.sh("for i in 1 2 3; do (setsid setsid sleep 86399 >/dev/null 2>&1 &) ; done")
    assert eventually(lambda: len(processes_named("sleep", "86399")) >= 3)
    machine.run(machine.runtime.stop(sandbox.id))
    assert processes_named("sleep", "86399") == []


def test_destroying_leaves_nothing(machine: Machine) -> None:
    with machine.sandbox() as sandbox:
        sandbox.sh("mkdir -m 000 /tmp/closed; mkdir -p /tmp/a/b/c; ln -s /etc/passwd /tmp/link; touch '/tmp/new\nline'")
        directory, socket_path = machine.state_dir / "sandboxes" / sandbox.id, Path(str(sandbox.address.path))
        assert directory.exists()
        assert socket_path.exists()
    assert not directory.exists()
    assert not socket_path.exists()
    assert eventually(lambda: not any((machine.state_dir / "trash").iterdir()))
    assert not any(sandbox.id in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def test_a_daemon_that_ends_is_announced(sandbox: Sandbox, machine: Machine) -> None:
    sandbox.ask(exit=7)
    assert eventually(lambda: machine.exits)
    ((id, reason),) = machine.exits
    machine.exits.clear()
    assert id == sandbox.id
    assert "code 7" in reason
    (status,) = [status for status in machine.run(machine.runtime.list()) if status.id == id]
    assert (status.state, status.reason) == ("failed", reason)
    address = machine.run(machine.runtime.start(id))
    assert ask(address, argv=["true"])["code"] == 0


def test_a_daemon_that_raises_is_announced_with_its_words(sandbox: Sandbox, machine: Machine) -> None:
    sandbox.ask(**{"raise": "it is broken"})
    assert eventually(lambda: machine.exits)
    ((_, reason),) = machine.exits
    machine.exits.clear()
    assert "RuntimeError: it is broken" in reason


def test_stopping_announces_nothing(sandbox: Sandbox, machine: Machine) -> None:
    machine.run(machine.runtime.stop(sandbox.id))
    machine.run(machine.runtime.start(sandbox.id))
    assert machine.exits == []


@pytest.mark.timeout(120)
def test_a_hundred_sandboxes_at_once(machine: Machine) -> None:
    specs = [spec(hostname=f"box-{number}") for number in range(100)]

    async def make() -> list[object]:
        for wanted in specs:
            await machine.runtime.create(wanted)
        return await asyncio.gather(*(machine.runtime.start(wanted.id) for wanted in specs))

    addresses = machine.run(make())
    names: dict[str, str] = {}

    def name(wanted_id: str, address: object) -> None:
        names[wanted_id] = ask(address, argv=["hostname"])["output"].strip()  # type: ignore[arg-type]

    threads = [
        threading.Thread(target=name, args=(wanted.id, address))
        for wanted, address in zip(specs, addresses, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == {wanted.id: wanted.hostname for wanted in specs}

    async def destroy() -> None:
        await asyncio.gather(*(machine.runtime.destroy(wanted.id) for wanted in specs))

    machine.run(destroy())
    assert eventually(lambda: not any((machine.state_dir / "trash").iterdir()), 30)
    assert not any((machine.state_dir / "s").iterdir())


def test_closing_removes_the_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with machine(state) as made, made.sandbox() as sandbox:
        sandbox.sh("echo > /tmp/file")
        made.run(made.runtime.aclose(destroy=True))
        assert not state.exists()
    assert processes_named("sandbox-daemon", str(state)) == []


def test_a_long_state_directory_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 20) / "state"
    with machine(state) as made, made.sandbox() as sandbox:
        assert sandbox.sh("echo here") == "here"
        assert len(str(sandbox.address.path)) < 107
        sockets = Path(str(sandbox.address.path)).parent.parent
        assert sockets.parent == Path("/tmp")
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert not sockets.exists()


def test_the_umask_of_the_server_does_not_show_inside(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with machine(tmp_path / "state") as made, made.sandbox() as sandbox:
            modes = sandbox.sh("umask; stat -c %a / /usr /etc /tmp /etc/hosts /etc/passwd /opt/venv/bin/pip")
            assert modes.split() == ["0022", "755", "755", "755", "1777", "644", "644", "755"]
    finally:
        os.umask(before)


@pytest.mark.anyio
async def test_a_cancelled_start_leaves_nothing_running(tmp_path: Path) -> None:
    runtime = NamespacesRuntime(tmp_path / "state", ephemeral=True, daemon_entry=ENTRY)
    await runtime.open(lambda id, reason: None)
    try:
        for delay in (0.0, 0.001, 0.002, 0.004, 0.008):
            wanted = spec()
            await runtime.create(wanted)
            start = asyncio.create_task(runtime.start(wanted.id))
            await asyncio.sleep(delay)
            start.cancel()
            await asyncio.wait([start])
            (status,) = await runtime.list()
            assert status.state in ("created", "failed", "running")
            assert (await runtime.address(wanted.id) is not None) == (status.state == "running")
            address = await runtime.start(wanted.id)
            assert (await asyncio.to_thread(ask, address, argv=["true"]))["code"] == 0
            await runtime.destroy(wanted.id)
    finally:
        await runtime.aclose(destroy=True)
    assert not (tmp_path / "state").exists()


@pytest.mark.anyio
async def test_starting_and_destroying_at_the_same_time_ends_destroyed(tmp_path: Path) -> None:
    runtime = NamespacesRuntime(tmp_path / "state", ephemeral=True, daemon_entry=ENTRY)
    await runtime.open(lambda id, reason: None)
    try:
        wanted = [spec() for _ in range(8)]
        for one in wanted:
            await runtime.create(one)
        async with asyncio.TaskGroup() as group:
            for one in wanted:
                group.create_task(runtime.start(one.id))
                group.create_task(runtime.destroy(one.id))
        assert await runtime.list() == []
    finally:
        await runtime.aclose(destroy=True)


def test_creating_is_quick(machine: Machine) -> None:
    """Far from a benchmark: it only notices that something waits for a timer."""
    times = []
    for _ in range(5):
        begun = time.monotonic()
        with machine.sandbox():
            pass
        times.append(time.monotonic() - begun)
    assert sorted(times)[0] < 0.5
