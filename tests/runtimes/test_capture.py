"""Capturing sandboxes: what is in a capture, of which instant it is, and that the sandbox hardly notices."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.runtimes.base import Captured, RuntimeFailure
from sandbox_aio.runtimes.namespaces import HOST_SNAPSHOT_ID, copying
from sandbox_aio.runtimes.namespaces import capture as module
from sandbox_aio.runtimes.namespaces.copied_tree import CopyLimits
from sandbox_aio.runtimes.namespaces.copying import TreeCopy
from sandbox_aio.runtimes.namespaces.freezing import descendants, freeze, thaw
from tests.runtimes.host import eventually
from tests.runtimes.machine import Machine, Sandbox, machine
from tests.runtimes.roots import small_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LISTING = r"""
cd / && find etc home opt root srv usr/local var -xdev ! -path 'etc/host*' \
    \( -type d -printf '%p %y %m %U %G\n' -o -type l -printf '%p %y %l\n' \
    -o -printf '%p %y %m %U %G %s %n %T@\n' \) | sort
cd / && find home opt root srv usr/local -xdev -type f -exec sha256sum {} + | sort
"""
"""All that can be seen of what is there."""

CHANGES = r"""
set -e
mkdir -p /opt/app/deep /srv/a && cd /opt/app
echo one > one; ln one two; ln -s ../one deep/link; mkfifo pipe; : > empty
head -c 3000000 /dev/urandom > big; truncate -s 5000000 holes
printf x | dd of=holes bs=1 seek=4000000 conv=notrunc 2>/dev/null
chmod 4750 one; chmod 0 empty; touch -d '2001-02-03 04:05:06.789' big
rm -rf /etc/alternatives; rm /etc/passwd-; mkdir /etc/alternatives; echo new > /etc/alternatives/new
echo more >> /etc/profile
python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('/opt/app/socket')"
touch /tmp/kept
"""
numbers = itertools.count(1000)


@pytest.fixture(scope="module")
def computer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A runtime of this module's own, since captures leave layers."""
    with machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


def capture(computer: Machine, id: str) -> tuple[str, Captured]:
    """Capture a sandbox as a layer, and return its id."""
    layers = computer.runtime.layers_directory
    draft = layers / f"draft-{next(numbers)}"
    (draft / "tree").mkdir(parents=True)
    captured = computer.run(computer.runtime.capture(id, draft))
    layer = str(next(numbers))
    draft.rename(layers / layer)
    return layer, captured


def prepare(box: Sandbox) -> None:
    box.sh("touch /etc/passwd-")
    box.sh(CHANGES)


@pytest.mark.parametrize("running", [True, False])
def test_another_sandbox_sees_the_same(computer: Machine, running: bool) -> None:
    with computer.sandbox() as box:
        prepare(box)
        before = box.sh(LISTING)
        if not running:
            computer.run(computer.runtime.stop(box.id))
        layer, captured = capture(computer, box.id)
        assert captured.entries > 10
        assert captured.size_bytes > 8_000_000
        assert (captured.frozen_seconds > 0) is running
        assert sum(f.lstat().st_blocks for f in (computer.runtime.layers_directory / layer).rglob("*")) < 12_000
        with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=(layer,), hostname="other") as other:
            seen = [line for line in before.splitlines() if "opt/app/socket" not in line]
            assert other.sh(LISTING).splitlines() == seen
            assert other.sh("cat /etc/hostname; test -e /tmp/kept && echo kept").split() == ["other", "kept"]
            assert other.sh("ls /etc/alternatives") == "new"


@pytest.mark.root
def test_the_systems_own_directories_are_captured_too(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.sh("rm /usr/bin/wall; echo local > /usr/local/file")
        layer, _ = capture(computer, box.id)
    with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=(layer,)) as other:
        assert other.sh("cat /usr/local/file; test -e /usr/bin/wall || echo gone").split() == ["local", "gone"]


def test_captures_are_stacked(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.sh("echo 1 > /srv/x; echo 1 > /srv/y; mkdir /srv/d; echo 1 > /srv/d/z")
        first, _ = capture(computer, box.id)
    with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=(first,)) as box:
        box.sh("echo 2 > /srv/x; rm /srv/y; rm -r /srv/d; mkdir /srv/d; echo 2 > /srv/d/w")
        second, captured = capture(computer, box.id)
        assert captured.size_bytes < 100
    with computer.sandbox(base=HOST_SNAPSHOT_ID, layers=(second, first)) as box:
        assert box.sh("cd /srv; cat x d/w; ls . d").split() == ["2", "2", ".:", "d", "x", "d:", "w"]


def test_an_image_without_the_host_is_captured(computer: Machine) -> None:
    small_root(computer.runtime.layers_directory / "1" / "tree")
    with computer.sandbox(base=None, layers=("1",)) as box:
        box.sh("echo mine > /etc/mine")
        layer, _ = capture(computer, box.id)
    with computer.sandbox(base=None, layers=(layer, "1")) as box:
        assert box.sh("cat /etc/mine") == "mine"


LOCKSTEP = """
import mmap, os, time
files = [open(f"/srv/{name}", "w+b", buffering=0) for name in ("a", "b")]
for file in files:
    file.truncate(1 << 16)
maps = [mmap.mmap(file.fileno(), 1 << 16) for file in files]
logs = [open(f"/srv/{name}.log", "ab", buffering=0) for name in ("a", "b")]
print("begun", flush=True)
number = 0
while True:
    number += 1
    for mapped in maps:
        mapped[:8] = number.to_bytes(8, "big")
    for log in logs:
        log.write(b"%d\\n" % number)
"""


def test_what_is_written_meanwhile_is_of_one_instant(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.sh(f"cat > /srv/lockstep.py <<'END'\n{LOCKSTEP}\nEND\npython3 /srv/lockstep.py >/srv/out 2>&1 & ")
        assert eventually(lambda: box.sh("cat /srv/out"))
        for _ in range(3):
            layer, _ = capture(computer, box.id)
            tree = computer.runtime.layers_directory / layer / "tree/srv"
            mapped = [int.from_bytes((tree / name).read_bytes()[:8], "big") for name in ("a", "b")]
            logged = [int((tree / f"{name}.log").read_text().splitlines()[-1]) for name in ("a", "b")]
            assert mapped[0] - mapped[1] in (0, 1)
            assert logged[0] - logged[1] in (0, 1)
            assert mapped[1] - logged[0] in (0, 1)
            assert len((tree / "a.log").read_text().splitlines()) == logged[0]
        box.sh("pkill -f '[l]ockstep'")


def test_while_it_stands_still_only_what_changed_is_copied(
    computer: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copies: list[int] = []
    original = TreeCopy.copy

    def counted(self: TreeCopy, *arguments: object, **options: object) -> None:
        original(self, *arguments, **options)  # type: ignore[arg-type]
        copies.append(self.copied)

    monkeypatch.setattr(TreeCopy, "copy", counted)
    with computer.sandbox() as box:
        box.sh("mkdir /srv/many; cd /srv/many; i=0; while [ $i -lt 2000 ]; do echo $i > $i; i=$((i+1)); done")
        time.sleep(copying.MARGIN_NS / 1e9 * 2)
        _, captured = capture(computer, box.id)
        assert copies[0] >= 2000
        assert copies[-1] <= module.FEW
        assert captured.frozen_seconds < 5


def test_a_process_that_somebody_else_has_stopped_stays_stopped(computer: Machine) -> None:
    with computer.sandbox() as box:
        pid = box.sh("sleep 1000 >/dev/null 2>&1 & echo $!")
        box.sh(f"kill -STOP {pid}")
        capture(computer, box.id)
        assert box.sh(f"cut -d' ' -f3 /proc/{pid}/stat") == "T"
        box.sh(f"kill -KILL {pid}")


def test_a_shell_does_not_see_its_child_stopped(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.sh("sh -c 'sleep 2; echo $?' > /srv/out 2>&1 &")
        for _ in range(5):
            capture(computer, box.id)
        assert eventually(lambda: box.sh("cat /srv/out"), 20) == "0"


def test_what_is_too_much_is_refused_and_the_sandbox_runs_on(
    computer: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limits in (CopyLimits(max_bytes=10), CopyLimits(max_entries=1)):
        monkeypatch.setattr(module, "CopyLimits", lambda limits=limits: limits)
        with computer.sandbox() as box:
            box.sh("echo 01234567890123456789 > /srv/long")
            draft = computer.runtime.layers_directory / f"draft-{next(numbers)}"
            (draft / "tree").mkdir(parents=True)
            with pytest.raises(RuntimeFailure, match="more than"):
                computer.run(computer.runtime.capture(box.id, draft))
            assert box.sh("echo still") == "still"


def test_directories_too_deep_to_follow_are_refused(computer: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "MAX_DEPTH", 20)
    with computer.sandbox() as box:
        box.python("import os\nfor _ in range(30):\n    os.mkdir('d'); os.chdir('d')")
        draft = computer.runtime.layers_directory / f"draft-{next(numbers)}"
        (draft / "tree").mkdir(parents=True)
        with pytest.raises(RuntimeFailure, match="nested more than 20 deep"):
            computer.run(computer.runtime.capture(box.id, draft))


def test_one_that_is_cancelled_leaves_the_sandbox_running(computer: Machine) -> None:
    async def impatient(id: str, draft: Path, pause: float) -> None:
        task = asyncio.create_task(computer.runtime.capture(id, draft))
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with computer.sandbox() as box:
        box.sh("head -c 1000000 /dev/urandom > /srv/x")
        for pause in (0.0, 0.002, 0.005, 0.01, 0.02):
            draft = computer.runtime.layers_directory / f"draft-{next(numbers)}"
            (draft / "tree").mkdir(parents=True)
            computer.run(impatient(box.id, draft, pause))
            assert box.sh("echo still") == "still"


@pytest.mark.root
def test_a_link_that_takes_the_place_of_a_directory_leads_nowhere(tmp_path: Path) -> None:
    source, target, secret = tmp_path / "source", tmp_path / "target", tmp_path / "secret"
    for folder in (source / "d", target, secret):
        folder.mkdir(parents=True)
    (secret / "file").write_text("the host's")
    copy = TreeCopy(str(target), offset=0, limits=CopyLimits())
    original = os.open

    def swapped(path: object, flags: int, *rest: object, dir_fd: int | None = None) -> int:
        if path == "d" and not (source / "d").is_symlink() and flags & os.O_DIRECTORY:
            (source / "d").rmdir()
            (source / "d").symlink_to(secret)
        return original(path, flags, *rest, dir_fd=dir_fd)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", swapped)
        copy.copy([(str(source), "")], frozen=False)
    assert list(target.rglob("file")) == []
    copy.copy([(str(source), "")], frozen=True)
    assert (target / "d").is_symlink()


def test_processes_are_stopped_parents_first_and_go_on() -> None:
    pid = os.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", "sleep 1000 & sleep 1000"])
    try:
        assert eventually(lambda: len(_tree(pid)) == 3)
        stopped = freeze(pid)
        assert stopped[0] == pid and len(stopped) == 3
        assert {_state(one) for one in stopped} == {"T"}
        thaw(stopped)
        assert eventually(lambda: {_state(one) for one in stopped} == {"S"})
        for one in reversed(stopped):
            os.kill(one, signal.SIGKILL)
    finally:
        os.waitpid(pid, 0)


def test_a_process_that_waits_for_its_child_to_begin_does_not_hinder(computer: Machine) -> None:
    with computer.sandbox() as box:
        box.sh(
            "python3 -c 'import subprocess\nwhile True: subprocess.run([\"/bin/true\"])' >/dev/null 2>&1 & "
            "python3 -c 'import subprocess\nwhile True: subprocess.run([\"/bin/true\"])' >/dev/null 2>&1 &"
        )
        for _ in range(15):
            capture(computer, box.id)


def _tree(pid: int) -> list[int]:
    return [one for one, _ in descendants(pid)]


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
