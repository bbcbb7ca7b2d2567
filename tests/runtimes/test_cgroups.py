"""Limits by control groups: what is written for which version, and that the kernel holds to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from sandbox_aio.runtimes.namespaces.cgroups import Cgroups, remove_groups
from tests.runtimes.machine import spec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.runtimes.machine import Machine

V1 = {
    "mountinfo": (
        "30 20 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
        "31 20 0:27 /outer /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "32 20 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    ),
    "cgroup": "4:memory:/outer/mine\n1:cpu:/\n0::/\n",
}
V2 = {
    "mountinfo": "30 20 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
    "cgroup": "0::/user.slice/it\n",
}


def fake_root(root: Path, files: Mapping[str, str], groups: Mapping[str, Mapping[str, str]]) -> Path:
    """Lay out what `Cgroups.detect` looks at below `root`."""
    (root / "proc/self").mkdir(parents=True)
    for name, text in files.items():
        (root / "proc/self" / name).write_text(text)
    for group, contents in groups.items():
        directory = root / "sys/fs/cgroup" / group
        directory.mkdir(parents=True)
        for name, text in contents.items():
            (directory / name).write_text(text)
    return root


def test_version_1_beside_a_second_one_without_controllers(tmp_path: Path) -> None:
    root = fake_root(tmp_path, V1, {"cpu": {}, "memory/mine": {}, "unified": {"cgroup.controllers": "hugetlb\n"}})
    found = Cgroups.detect("tag", root)
    assert dict(found.versions) == {"memory": "cgroup1", "cpu": "cgroup1"}
    joins = found.make("box", cpu_millicores=500, mem_bytes=1 << 28)
    cgroup = root / "sys/fs/cgroup"
    assert joins == (str(cgroup / "memory/mine/tag/box/cgroup.procs"), str(cgroup / "cpu/tag/box/cgroup.procs"))
    assert (cgroup / "memory/mine/tag/box/memory.limit_in_bytes").read_text() == str(1 << 28)
    assert (cgroup / "cpu/tag/box/cpu.cfs_quota_us").read_text() == "50000"
    assert (cgroup / "cpu/tag/box/cpu.cfs_period_us").read_text() == "100000"


def test_version_2(tmp_path: Path) -> None:
    controllers = {"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "cpu memory\n"}
    root = fake_root(tmp_path, V2, {"user.slice/it": controllers, "user.slice/it/tag": controllers})
    found = Cgroups.detect("tag", root)
    assert dict(found.versions) == {"memory": "cgroup2", "cpu": "cgroup2"}
    (join,) = found.make("box", cpu_millicores=1500, mem_bytes=1 << 28)
    group = root / "sys/fs/cgroup/user.slice/it/tag/box"
    assert join == str(group / "cgroup.procs")
    assert (group / "memory.max").read_text() == str(1 << 28)
    assert (group / "cpu.max").read_text() == "150000 100000"


def test_nothing_to_write_to(tmp_path: Path) -> None:
    found = Cgroups.detect("tag", fake_root(tmp_path, {"mountinfo": "", "cgroup": "0::/\n"}, {}))
    assert found.version("memory") is found.version("cpu") is None
    with pytest.raises(RuntimeFailure, match="cpu_millicores cannot be enforced") as caught:
        found.make("box", cpu_millicores=100, mem_bytes=None)
    assert caught.value.kind == "UnsupportedLimit"
    with pytest.raises(RuntimeFailure, match="mem_bytes cannot be enforced"):
        found.make("box", cpu_millicores=None, mem_bytes=1 << 30)


def test_groups_are_removed_and_removed_again(tmp_path: Path) -> None:
    root = fake_root(tmp_path, V1, {"cpu": {}, "memory/mine": {}, "unified": {"cgroup.controllers": ""}})
    found = Cgroups.detect("tag", root)
    group = found.parents["cpu"] / "box"
    group.mkdir()
    for _ in range(2):
        remove_groups([str(group / "cgroup.procs")])
        assert not group.exists()
    found.clear()
    found.clear()
    assert not any(parent.exists() for parent in found.parents.values())


def groups_of(machine: Machine) -> list[Path]:
    """The control groups of sandboxes that there are."""
    parents = set(machine.runtime._cgroups.parents.values())
    return [group for parent in parents for group in parent.iterdir() if group.is_dir()]


@pytest.mark.root
def test_memory_is_limited(machine: Machine) -> None:
    with machine.sandbox(mem_bytes=128 << 20) as sandbox:
        assert sandbox.attempt("python3 -c 'x = bytearray(300 << 20)'")[0] in (-9, 137, 1)
        assert sandbox.sh("python3 -c 'x = bytearray(20 << 20); print(1)'") == "1"
        assert "sandbox-aio" not in sandbox.sh("cat /proc/self/cgroup")
        assert groups_of(machine)
        machine.run(machine.runtime.stop(sandbox.id))
        assert groups_of(machine) == []
        machine.run(machine.runtime.start(sandbox.id))
        assert sandbox.attempt("python3 -c 'x = bytearray(300 << 20)'")[0] in (-9, 137, 1)
    assert groups_of(machine) == []


@pytest.mark.root
def test_processor_time_is_limited(machine: Machine) -> None:
    with machine.sandbox(cpu_millicores=200) as sandbox:
        used = sandbox.python(
            "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass\nprint(time.process_time())"
        )
        assert float(used) < 0.8
    assert groups_of(machine) == []


@pytest.mark.root
def test_a_boot_that_fails_leaves_no_group(machine: Machine) -> None:
    wanted = spec(mem_bytes=64 << 20, cpu_millicores=1000)
    machine.run(machine.runtime.create(wanted))
    (machine.state_dir / "sandboxes" / wanted.id / "root").rmdir()
    with pytest.raises(RuntimeFailure, match="did not start"):
        machine.run(machine.runtime.start(wanted.id))
    assert groups_of(machine) == []
    machine.run(machine.runtime.destroy(wanted.id))
