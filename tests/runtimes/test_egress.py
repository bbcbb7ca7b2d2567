"""The socket that listens in a sandbox's network, and is the server's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shlex
import socket
from pathlib import Path

from sandbox_aio.runtimes.base import EGRESS_PORT
from tests.runtimes.host import eventually
from tests.runtimes.machine import Machine, Sandbox, spec
from tests.runtimes.machine import machine as machine_of

SAY = """
import socket
with socket.create_connection(("127.0.0.1", {port}), 10) as connection:
    connection.sendall({text!r})
    print(connection.recv(9))
"""


def listener_of(machine: Machine, id: str) -> socket.socket:
    listener = machine.run(machine.runtime.egress_listener(id))
    assert listener is not None
    return listener


def holders(inode: int) -> list[str]:
    """The names of the processes of the whole machine that have a descriptor of a socket."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # The descriptor by which we read the directory, for one.
                    if os.readlink(link) == f"socket:[{inode}]":
                        found.append((process / "comm").read_text().strip())
    return found


def served(machine: Machine, sandbox: Sandbox, text: bytes) -> None:
    """What a program in the sandbox says to the port arrives here, and the answer there."""
    with listener_of(machine, sandbox.id) as listener:
        background = SAY.format(port=EGRESS_PORT, text=text)
        sandbox.sh(f"nohup python3 -c {shlex.quote(background)} > /tmp/said 2>&1 &")
        assert select.select([listener], [], [], 20)[0]
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            assert connection.recv(100) == text
            connection.sendall(b"heard")
    sandbox.sh("for i in $(seq 200); do grep -q heard /tmp/said && exit; sleep 0.05; done; cat /tmp/said; exit 1")


def test_a_program_in_the_sandbox_reaches_who_accepts(machine: Machine, sandbox: Sandbox) -> None:
    served(machine, sandbox, b"hello")


def test_the_listener_is_offered_again(machine: Machine, sandbox: Sandbox) -> None:
    served(machine, sandbox, b"first")
    served(machine, sandbox, b"second")


def test_each_sandbox_has_its_own(machine: Machine, sandbox: Sandbox) -> None:
    with machine.sandbox() as other, listener_of(machine, sandbox.id) as ours, listener_of(machine, other.id) as theirs:
        other.python(f"import socket; socket.create_connection(('127.0.0.1', {EGRESS_PORT}), 10)")
        assert select.select([ours, theirs], [], [], 20)[0] == [theirs]


def test_nobody_in_the_sandbox_holds_the_listener(machine: Machine, sandbox: Sandbox) -> None:
    """Who held it could answer in the server's place. The zygote alone has it, and this process while it is open."""
    with listener_of(machine, sandbox.id) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        assert Path("/proc/self/comm").read_text().strip() in holders(inode)
    assert eventually(lambda: holders(inode) == ["sandbox-zygote"])  # A spare that is just forked closes what it has.


def test_a_port_that_is_taken_cannot_be_taken_again(sandbox: Sandbox) -> None:
    code, output = sandbox.attempt(f"python3 -c 'import socket; socket.create_server((\"127.0.0.1\", {EGRESS_PORT}))'")
    assert code != 0
    assert "Address already in use" in output


def test_there_is_none_of_a_sandbox_that_does_not_run(machine: Machine) -> None:
    wanted = spec()
    assert machine.run(machine.runtime.egress_listener(wanted.id)) is None
    machine.run(machine.runtime.create(wanted))
    assert machine.run(machine.runtime.egress_listener(wanted.id)) is None
    machine.run(machine.runtime.start(wanted.id))
    machine.run(machine.runtime.stop(wanted.id))
    assert machine.run(machine.runtime.egress_listener(wanted.id)) is None
    machine.run(machine.runtime.destroy(wanted.id))


def test_nothing_holds_the_network_of_a_sandbox_that_is_gone(machine: Machine) -> None:
    with machine.sandbox() as sandbox:
        with listener_of(machine, sandbox.id) as listener:
            inode = os.fstat(listener.fileno()).st_ino
        assert holders(inode)
    assert eventually(lambda: not holders(inode))


def test_a_caller_that_leaves_in_time_leaves_no_descriptor(machine: Machine, sandbox: Sandbox) -> None:
    with listener_of(machine, sandbox.id) as listener:
        inode = os.fstat(listener.fileno()).st_ino

    async def ask_and_leave() -> None:
        for turns in range(6):
            asking = asyncio.ensure_future(machine.runtime.egress_listener(sandbox.id))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            for result in await asyncio.gather(asking, return_exceptions=True):
                if isinstance(result, socket.socket):
                    result.close()

    machine.run(ask_and_leave())
    listener_of(machine, sandbox.id).close()  # By now, every answer has come.
    assert eventually(lambda: holders(inode) == ["sandbox-zygote"])


def test_a_later_server_is_given_it_too(tmp_path: Path) -> None:
    first = Machine(tmp_path, ephemeral=False)
    wanted = spec()
    try:
        first.open()
        first.run(first.runtime.create(wanted))
        first.run(first.runtime.start(wanted.id))
        listener_of(first, wanted.id).close()
        first.run(first.runtime.aclose(destroy=False))
    finally:
        first.halt()
    with machine_of(tmp_path, ephemeral=False) as second:
        address = second.run(second.runtime.address(wanted.id))
        assert address is not None
        served(second, Sandbox(second, wanted.id, address), b"again")
