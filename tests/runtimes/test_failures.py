"""What goes wrong is named, and leaves nothing."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from tests.runtimes.host import eventually
from tests.runtimes.machine import Machine, ask, machine, spec

if TYPE_CHECKING:
    from tests.runtimes.machine import Sandbox


def runs(machine: Machine, id: str) -> bool:
    """Whether the zygote knows a sandbox."""
    client = machine.runtime._keeper.present
    assert client is not None
    return id in machine.run(client.request("list"))["running"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": str(uuid.uuid4())}, "there is no snapshot"),
        ({"id": "../escape"}, "is not a UUID"),
        ({"id": str(uuid.uuid4()).upper()}, "is not a UUID"),
        ({"hostname": ""}, "is not a host name"),
        ({"hostname": "two\nlines"}, "is not a host name"),
        ({"hostname": "x" * 64}, "is not a host name"),
    ],
)
def test_a_bad_specification_is_refused(machine: Machine, changes: dict[str, Any], message: str) -> None:
    before = machine.run(machine.runtime.list())
    directories = set((machine.state_dir / "sandboxes").iterdir())
    with pytest.raises(RuntimeFailure, match=message):
        machine.run(machine.runtime.create(spec(**changes)))
    assert machine.run(machine.runtime.list()) == before
    assert set((machine.state_dir / "sandboxes").iterdir()) == directories


def test_an_unknown_sandbox_cannot_be_started(machine: Machine) -> None:
    with pytest.raises(RuntimeFailure, match="there is no sandbox") as caught:
        machine.run(machine.runtime.start(str(uuid.uuid4())))
    assert caught.value.kind == "NotFound"


@pytest.mark.parametrize(("missing", "step"), [("", "directory"), ("upper", "layers"), ("root", "layers")])
def test_a_boot_that_fails_names_the_step_and_leaves_nothing(machine: Machine, missing: str, step: str) -> None:
    wanted = spec()
    sockets = set((machine.state_dir / "s").iterdir())
    machine.run(machine.runtime.create(wanted))
    try:
        shutil.rmtree(machine.state_dir / "sandboxes" / wanted.id / missing)
        with pytest.raises(RuntimeFailure, match=rf"did not start: at the step .*{step}.*: .*No such file"):
            machine.run(machine.runtime.start(wanted.id))
        (status,) = [status for status in machine.run(machine.runtime.list()) if status.id == wanted.id]
        assert status.state == "failed"
        assert step in str(status.reason)
        assert machine.run(machine.runtime.address(wanted.id)) is None
        assert not runs(machine, wanted.id)
        assert set((machine.state_dir / "s").iterdir()) == sockets
    finally:
        machine.run(machine.runtime.destroy(wanted.id))
    assert machine.exits == []


def test_a_sandbox_may_be_started_again_after_a_failure(machine: Machine) -> None:
    wanted = spec()
    machine.run(machine.runtime.create(wanted))
    root = machine.state_dir / "sandboxes" / wanted.id / "root"
    root.rename(root.with_name("moved"))
    with pytest.raises(RuntimeFailure, match="did not start"):
        machine.run(machine.runtime.start(wanted.id))
    root.with_name("moved").rename(root)
    address = machine.run(machine.runtime.start(wanted.id))
    assert ask(address, argv=["true"])["code"] == 0
    machine.run(machine.runtime.destroy(wanted.id))


@pytest.mark.parametrize("entry", ["nowhere.to.be.found:run", "tests.runtimes.shell_daemon:missing"])
def test_a_daemon_that_cannot_be_imported_is_reported(tmp_path: Path, entry: str) -> None:
    made = Machine(tmp_path / "state", daemon_entry=entry)
    try:
        with pytest.raises(RuntimeFailure, match="zygote"):
            made.open()
    finally:
        made.halt()
    assert not (tmp_path / "state").exists()


def test_a_state_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = Machine(tmp_path / "file" / "state")
    try:
        with pytest.raises(RuntimeFailure, match=r"state directory .* cannot be used: Not a directory"):
            made.open()
    finally:
        made.halt()


def test_what_a_killed_predecessor_left_half_made_is_removed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for name in ("sandboxes/half/upper", "trash/old/work/work", "snapshots/host/draft/etc", "s"):
        (state / name).mkdir(parents=True)
    (state / "trash/old/work/work").chmod(0)
    (state / "s/0123456789abcdef").touch()
    (state / "control").touch()
    with machine(state) as made:
        assert made.run(made.runtime.list()) == []
        for name in ("sandboxes", "trash", "s"):
            assert eventually(lambda folder=state / name: not list(folder.iterdir())), name  # type: ignore[misc]
    assert not state.exists()


def test_the_daemon_survives_a_fork_that_fails(sandbox: Sandbox) -> None:
    """Trap (g): with as many processes as there may be, it gets EAGAIN, says so, and goes on."""
    sandbox.attempt("prlimit --pid 1 --nproc=20:20; for i in $(seq 30); do setsid sleep 2 >/dev/null 2>&1 & done")
    code, output = sandbox.attempt("echo alive")
    assert (code, "temporarily unavailable" in output) == (127, True)
    assert eventually(lambda: sandbox.attempt("echo alive") == (0, "alive\n"))


def test_processes_are_bounded(box: Sandbox) -> None:
    assert 0 < int(box.python("import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[1])")) <= 16_384


def test_deleting_from_the_snapshot_s_directories_works(sandbox: Sandbox) -> None:
    """Trap (d): the overlay's work directory, mode 000, is the kernel's and not in the way."""
    sandbox.sh("rm -rf /etc/ld.so.conf.d /etc/alternatives; mkdir /etc/alternatives; touch /etc/alternatives/new")
    assert sandbox.sh("ls /etc/alternatives") == "new"
    assert sandbox.attempt("test -e /etc/ld.so.conf.d")[0] == 1
    sandbox.sh("mkdir -p /etc/ld.so.conf.d/again && mv /etc/ld.so.conf.d/again /etc/ld.so.conf.d/renamed")


def test_nothing_mounted_for_a_sandbox_shows_on_the_host(sandbox: Sandbox, machine: Machine) -> None:
    """Trap (e): a mount point of a sandbox can be removed on the host, because it is none there."""
    mounts = Path("/proc/self/mountinfo").read_text()
    assert str(machine.state_dir) not in mounts
    assert sandbox.id not in mounts
    assert list((machine.state_dir / "sandboxes" / sandbox.id / "root").iterdir()) == []
