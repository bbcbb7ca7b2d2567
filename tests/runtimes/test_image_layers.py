"""Booting from layers: of an image alone, and over one of the runtime's own snapshots."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.runtimes.base import MAX_LAYERS, RuntimeFailure
from sandbox_aio.runtimes.namespaces import HOST_SNAPSHOT_ID
from sandbox_aio.runtimes.namespaces.syscalls import new_mount
from tests.runtimes.machine import Machine, machine
from tests.runtimes.roots import lay_layer, small_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A runtime whose layer 1 is a small root file system, with a few more over it."""
    with machine(tmp_path_factory.mktemp("machine")) as made:
        layers = made.runtime.layers_directory
        small_root(layers / "1" / "tree")
        lay_layer(layers, "2", {"srv/a": "a2", "srv/b": "b2", "opt/deep/x": "x2"})
        lay_layer(layers, "3", {"srv/a": None, "srv/c": "c3", "opt/deep/": "", "opt/deep/y": "y3"})
        yield made


def test_layers_are_stacked_and_hide_what_they_hide(layered: Machine) -> None:
    with layered.sandbox(base=None, layers=("3", "2", "1"), hostname="tower") as box:
        assert box.sh("cat /srv/b /srv/c") == "b2c3"
        assert box.sh("ls /srv; ls /opt/deep").split() == ["b", "c", "y"]
        assert box.sh("cat /etc/hostname") == "tower"
        assert box.sh("stat -c %a /tmp /dev /proc").split() == ["1777", "755", "555"]


def test_a_sandbox_changes_nothing_below(layered: Machine) -> None:
    with layered.sandbox(base=None, layers=("3", "2", "1")) as box:
        box.sh("echo mine > /srv/b; echo mine > /bin/new; echo mine > /opt/deep/y")
        with layered.sandbox(base=None, layers=("3", "2", "1")) as other:
            assert other.sh("cat /srv/b /opt/deep/y; ls /bin").startswith("b2y3")
    assert (layered.runtime.layers_directory / "2/tree/srv/b").read_text() == "b2"


def test_nothing_of_the_stack_is_reachable_from_inside(layered: Machine) -> None:
    with layered.sandbox(base=None, layers=("2", "1")) as box:
        mounts = box.sh("cat /proc/self/mountinfo")
        roots = [line for line in mounts.splitlines() if line.split()[4] == "/"]
        assert len(roots) == 1
        assert " overlay " in roots[0]


def test_layers_over_the_host_reach_into_its_own_file_systems(layered: Machine) -> None:
    lay_layer(layered.runtime.layers_directory, "20", {"usr/local/share/found": "in usr", "srv/found": "in root"})
    lay_layer(layered.runtime.layers_directory, "21", {"srv/found": "above"})
    with layered.sandbox(base=HOST_SNAPSHOT_ID, layers=("21", "20")) as box:
        assert box.sh("cat /usr/local/share/found /srv/found") == "in usrabove"
        assert box.sh("test -x /usr/bin/env && echo yes") == "yes"


@pytest.mark.root
def test_ids_on_disk_are_the_ids_inside(layered: Machine) -> None:
    lay_layer(layered.runtime.layers_directory, "30", {"home/alice/notes": "hers", "home/root": "his"})
    os.chown(layered.runtime.layers_directory / "30/tree/home/alice/notes", 1234, 1234)
    with layered.sandbox(base=None, layers=("30", "1")) as box:
        assert box.sh("stat -c '%U %G' /home/alice/notes /home/root").split() == ["alice", "alice", "root", "root"]
        box.sh("chown 0:1234 /home/alice/notes")
    assert (layered.runtime.layers_directory / "30/tree/home/alice/notes").stat().st_uid == 1234


@pytest.mark.parametrize("count", [200, MAX_LAYERS])
def test_there_may_be_more_layers_than_fit_into_the_options_of_a_mount(layered: Machine, count: int) -> None:
    layers = layered.runtime.layers_directory
    ids = [lay_layer(layers, str(100_000 + number), {f"srv/{number}": str(number)}) for number in range(count - 1)]
    try:
        with layered.sandbox(base=None, layers=(*reversed(ids), "1")) as box:
            assert sorted(map(int, box.sh("ls /srv").split())) == list(range(count - 1))
            assert box.sh(f"cat /srv/0 /srv/{count - 2}") == f"0{count - 2}"
    finally:
        for id in ids:
            shutil.rmtree(layers / id)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"base": None, "layers": ()}, "neither a base nor a layer"),
        ({"base": None, "layers": ("99",)}, "there is no layer '99'"),
        ({"base": None, "layers": ("../layers/1",)}, "there is no layer"),
        ({"base": None, "layers": ("1",) * (MAX_LAYERS + 1)}, "flatten"),
    ],
)
def test_what_cannot_be_stacked_is_refused(layered: Machine, wanted: dict[str, object], message: str) -> None:
    with pytest.raises(RuntimeFailure, match=message), layered.sandbox(**wanted):
        pass


def test_a_stopped_sandbox_boots_from_its_layers_again(tmp_path: Path) -> None:
    with machine(tmp_path, ephemeral=False) as first:
        small_root(first.runtime.layers_directory / "1" / "tree")
        lay_layer(first.runtime.layers_directory, "2", {"srv/a": "a2"})
        with first.sandbox(base=None, layers=("2", "1")) as box:
            box.sh("echo kept > /srv/mine")
            first.run(first.runtime.stop(box.id))
            box.address = first.run(first.runtime.start(box.id))
            assert box.sh("cat /srv/a /srv/mine") == "a2kept"


def test_the_kernel_says_which_option_of_a_mount_it_refuses() -> None:
    with pytest.raises(OSError, match=r"fsconfig nonsense x|fsopen"):
        new_mount("tmpfs", [("nonsense", "x")])
