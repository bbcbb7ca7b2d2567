"""Captures that are hard, hostile or interrupted: what they hold, and that the sandbox goes on at once."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from sandbox_aio.runtimes.namespaces import HOST_SNAPSHOT_ID, sandbox_process
from sandbox_aio.runtimes.namespaces import capture as module
from sandbox_aio.runtimes.namespaces.copying import TreeCopy
from sandbox_aio.runtimes.namespaces.freezing import freeze, thaw
from tests.runtimes.host import eventually
from tests.runtimes.machine import Machine, Sandbox, ask, machine
from tests.runtimes.owners import owner

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE_S = sandbox_process.FREEZE_LIMIT_S / 2
"""Far below the time after which the zygote lets a sandbox go on by itself."""
numbers = itertools.count(1000)


@pytest.fixture(scope="module")
def computer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A runtime of this module's own, since captures leave layers."""
    with machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


def draft_in(computer: Machine) -> Path:
    draft = computer.runtime.layers_directory / f"draft-{next(numbers)}"
    (draft / "tree").mkdir(parents=True)
    return draft


def capture(computer: Machine, id: str) -> str:
    """Capture a sandbox as a layer, and return its id."""
    draft = draft_in(computer)
    computer.run(computer.runtime.capture(id, draft))
    assert [path.name for path in draft.iterdir()] == ["tree"]
    layer = str(next(numbers))
    draft.rename(draft.parent / layer)
    return layer


def require_quick(box: Sandbox) -> None:
    """Raise AssertionError unless the sandbox answers, and not only once the zygote has lost its patience."""
    start = time.monotonic()
    assert box.sh("echo still") == "still"
    assert time.monotonic() - start < AT_ONCE_S


ATTRIBUTES = r"""
import os, struct
os.chdir("/srv")
def entry(tag, permissions, id=0xffffffff):
    return struct.pack("<HHI", tag, permissions, id)
named = entry(2, 6, 1000) + entry(4, 4) + entry(8, 4, 2000)
acl = struct.pack("<I", 2) + entry(1, 6) + named + entry(16, 6) + entry(32, 4)
os.mkdir("default")
for name in ("program", "listed", "default/child"):
    open(name, "w").close()
os.setxattr("program", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
os.setxattr("listed", "system.posix_acl_access", acl)
os.setxattr("default", "system.posix_acl_default", acl)
os.setxattr("default", "user.overlay.opaque", b"y")
os.chown("program", 1000, 2000)
os.setxattr("program", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
"""
LOOK = r"""
import os
for folder, folders, files in sorted(os.walk("/srv")):
    for path in sorted([folder] + [folder + "/" + name for name in files]):
        status = os.stat(path)
        print(path, oct(status.st_mode), status.st_uid, status.st_gid,
            sorted((name, os.getxattr(path, name)) for name in os.listxattr(path)))
"""


@pytest.mark.root
def test_ids_within_attributes_are_those_of_the_next_sandbox(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.python(ATTRIBUTES)
        before = box.python(LOOK)
        assert all(word in before for word in ("security.capability", "posix_acl_access", "user.overlay.opaque"))
        layer = capture(computer, box.id)
    with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=(layer,)) as other:
        assert other.python(LOOK) == before
        other.sh("echo more >> /srv/program")  # Copied up, with its attributes.
        layers = (capture(computer, other.id), layer)
    with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=layers) as third:
        assert third.sh("cat /srv/program") == "more"


def test_a_fifo_keeps_its_mode_whatever_the_servers_umask(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.sh("mkfifo -m 666 /srv/fifo")
        layer = capture(computer, box.id)
    with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=(layer,)) as other:
        assert other.sh("stat -c '%F %a' /srv/fifo") == "fifo 666"


def test_directories_deeper_than_the_stack(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.python(
            "import os\nos.chdir('/srv')\nfor _ in range(1500):\n    os.mkdir('d'); os.chdir('d')\nopen('f', 'w')"
        )
        layer = capture(computer, box.id)
    with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=(layer,)) as other:
        deep = "import os\nos.chdir('/srv')\nfor _ in range(1500):\n    os.chdir('d')\nprint(os.listdir())"
        assert other.python(deep) == "['f']"


MAPPERS = """
import mmap, os
places = ("/usr/local/mapped", "/srv/mapped")
maps = []
for place in places:
    file = open(place, "w+b", buffering=0)
    file.truncate(4096)
    os.link(place, os.path.dirname(place) + "/a-name-before-it")
    maps.append(mmap.mmap(file.fileno(), 4096))
open("/srv/begun", "w").close()
number = 0
while True:
    number += 1
    for mapped in maps:
        mapped[:8] = number.to_bytes(8, "big")
"""


@pytest.mark.root
def test_what_is_mapped_in_usr_and_under_two_names_is_of_one_instant(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.sh(f"cat > /srv/mappers.py <<'END'\n{MAPPERS}\nEND\npython3 /srv/mappers.py >/srv/out 2>&1 &")
        assert eventually(lambda: box.attempt("test -e /srv/begun")[0] == 0), box.sh("cat /srv/out")
        for _ in range(3):
            tree = computer.runtime.layers_directory / capture(computer, box.id) / "tree"
            files = [tree / folder / name for folder in ("usr/local", "srv") for name in ("mapped", "a-name-before-it")]
            values = [int.from_bytes(file.read_bytes()[:8], "big") for file in files]
            assert values[0] == values[1] and values[2] == values[3]
            assert values[0] - values[2] in (0, 1)
        box.sh("pkill -f '[m]appers'")


HEADLESS = """
import ctypes, threading
def work():
    while True:
        pass
threading.Thread(target=work).start()
print("begun", flush=True)
ctypes.CDLL(None).pthread_exit(0)
"""


def test_a_process_whose_first_thread_has_ended_is_stopped() -> None:
    def states() -> list[str]:
        tasks = sorted(Path(f"/proc/{process.pid}/task").iterdir())
        return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]

    with subprocess.Popen([sys.executable, "-c", HEADLESS], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            assert eventually(lambda: states() == ["Z", "R"])
            stopped = freeze(process.pid)
            assert stopped == [process.pid]
            assert states() == ["Z", "T"]
            thaw(stopped)
            assert eventually(lambda: states() == ["Z", "R"])
        finally:
            process.kill()


def test_a_capture_that_is_cancelled_while_the_sandbox_stands_still(
    computer: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = asyncio.Event()
    original = TreeCopy.copy

    async def cancelled(id: str) -> None:
        loop = asyncio.get_running_loop()

        def endless(self: TreeCopy, *arguments: Any, **options: Any) -> None:
            if options["frozen"]:
                loop.call_soon_threadsafe(frozen.set)
                while True:
                    self._checkpoint()
                    time.sleep(0.001)
            original(self, *arguments, **options)

        monkeypatch.setattr(TreeCopy, "copy", endless)
        task = asyncio.create_task(computer.runtime.capture(id, draft_in(computer)))
        await frozen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with computer.sandbox() as box:
        computer.run(cancelled(box.id))
        require_quick(box)


def test_a_copy_that_takes_too_long_is_given_up_and_the_sandbox_goes_on(
    computer: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREEZE_LIMIT_S", 0.0)
    with computer.sandbox() as box:
        with pytest.raises(RuntimeFailure, match="took longer"):
            computer.run(computer.runtime.capture(box.id, draft_in(computer)))
        require_quick(box)


def test_a_full_disk_is_said_and_the_sandbox_goes_on(computer: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sandbox_aio.runtimes.namespaces.copying.copy_content", full)
    with computer.sandbox() as box:
        box.sh("echo x > /srv/x")
        with pytest.raises(RuntimeFailure, match=r"cannot be captured: .*No space left"):
            computer.run(computer.runtime.capture(box.id, draft_in(computer)))
        require_quick(box)


def test_a_sandbox_goes_on_when_the_server_is_killed_that_has_stopped_it(tmp_path: Path) -> None:
    with owner(tmp_path / "state", "freezing", 1) as (pid, addresses):
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        try:
            (address,) = addresses.values()
            assert ask(address, argv=["/bin/echo", "still"])["output"] == "still\n"
            assert time.monotonic() - start < AT_ONCE_S
        finally:
            with machine(tmp_path / "state"):  # An ephemeral server ends whatever is there.
                pass


def test_the_zygote_lets_a_sandbox_go_on_that_stands_still_too_long(computer: Machine) -> None:
    async def stop(id: str) -> None:
        client = await computer.runtime._keeper.client()
        assert (await client.request("freeze", id=id))["ok"]

    async def start(id: str) -> bool:
        client = await computer.runtime._keeper.client()
        return bool((await client.request("thaw", id=id))["thawed"])

    with computer.sandbox() as box:
        computer.run(stop(box.id))
        begun = time.monotonic()
        assert box.sh("echo still") == "still"
        assert AT_ONCE_S < time.monotonic() - begun < 2 * sandbox_process.FREEZE_LIMIT_S
        assert not computer.run(start(box.id))


def test_nobody_else_gets_to_the_layers(computer: Machine) -> None:
    """In them, programs of the hostile belong to root, and may be set-user-id."""
    assert stat.S_IMODE(os.stat(computer.runtime.layers_directory).st_mode) == 0o700
