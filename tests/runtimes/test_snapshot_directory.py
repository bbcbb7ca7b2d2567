"""Snapshots that are directories of the host: root file systems that something else has unpacked."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.runtimes.base import RuntimeFailure
from sandbox_aio.runtimes.namespaces.snapshot_directory import open_snapshots
from tests.runtimes.machine import Machine, machine
from tests.runtimes.roots import PROGRAMS, small_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)
    (folder / "small.json").write_text(json.dumps({"work_dir": "/etc", "env_vars": {"PATH": "/bin", "A": "b"}}))
    return small_root(folder / "small")


@pytest.fixture(scope="module")
def imaged(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with machine(tmp_path_factory.mktemp("machine"), snapshots=[("small/image", image)]) as made:
        yield made


def test_it_is_offered_beside_host_with_its_settings(imaged: Machine, image: Path) -> None:
    host, small = imaged.run(imaged.runtime.snapshots())
    assert host.name == "host"
    assert (small.name, small.tags, small.work_dir) == ("small/image", ("latest",), "/etc")
    assert small.env_vars == {"PATH": "/bin", "A": "b"}
    assert small.fs_capacity_bytes > 1 << 20
    assert list(open_snapshots([("small/image", image)])) == [small.id]


def test_a_sandbox_boots_it_and_sees_nothing_of_the_host(imaged: Machine) -> None:
    snapshot = imaged.run(imaged.runtime.snapshots())[1]
    with imaged.sandbox(base=snapshot.id, hostname="smallbox") as box:
        assert sorted(box.sh("ls /bin").split()) == sorted(PROGRAMS)
        assert "usr" not in box.sh("ls /").split() or "share" not in box.sh("ls /usr").split()
        assert box.sh("cat /etc/hostname") == "smallbox"
        assert box.sh("stat -c %a /tmp /dev /proc").split() == ["1777", "755", "555"]
        assert box.sh("id -u") == "0"
        box.sh("touch /etc/new /bin/new; : > /tmp/x")


def test_what_it_writes_stays_in_the_sandbox(imaged: Machine, image: Path) -> None:
    snapshot = imaged.run(imaged.runtime.snapshots())[1]
    with imaged.sandbox(base=snapshot.id) as box:
        box.sh("echo mine > /etc/passwd")
        assert box.sh("cat /etc/passwd") == "mine"
        with imaged.sandbox(base=snapshot.id) as other:
            assert "alice" in other.sh("cat /etc/passwd")
    assert "alice" in (image / "etc/passwd").read_text()
    assert not (image / "dev").exists()


@pytest.mark.root
def test_other_users_of_the_image_exist(imaged: Machine) -> None:
    snapshot = imaged.run(imaged.runtime.snapshots())[1]
    with imaged.sandbox(base=snapshot.id) as box:
        box.sh("touch /tmp/file; chown alice:alice /tmp/file")
        assert box.sh("stat -c '%U %u' /tmp/file") == "alice 1234"


def test_the_host_snapshot_is_as_before(imaged: Machine) -> None:
    with imaged.sandbox() as box:
        assert box.sh("ls /usr/bin/env") == "/usr/bin/env"


@pytest.mark.parametrize("name", ["", "host", "UPPER", "-x", "a" * 256])
def test_a_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeFailure, match="name"):
        open_snapshots([(name, tmp_path)])


def test_a_name_is_used_once_and_a_directory_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="already"):
        open_snapshots([("a", tmp_path), ("a", tmp_path)])
    with pytest.raises(RuntimeFailure, match="no directory"):
        open_snapshots([("a", tmp_path / "nothing")])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"entrypoint": "x"}',
        '{"user": 5}',
        '{"work_dir": "here"}',
        '{"env_vars": []}',
        '{"env_vars": {"a": 1}}',
    ],
)
def test_settings_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image.json").write_text(text)
    with pytest.raises(RuntimeFailure, match=r"image\.json"):
        open_snapshots([("image", tmp_path / "image")])


def test_the_settings_may_name_a_user(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image.json").write_text('{"user": "postgres"}')
    (snapshot,) = open_snapshots([("image", tmp_path / "image")]).values()
    assert snapshot.describe().user == "postgres"
    assert os.path.isabs(snapshot.path)
