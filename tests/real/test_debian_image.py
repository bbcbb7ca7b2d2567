"""A whole distribution as an image: unpacked as another program unpacks it, booted, changed, captured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sandbox_aio import SandboxClient
from tests.real.root_trees import debian
from tests.registry import make_image, registry, run
from tests.serving import API_KEY, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be told of what is in a tree, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            is_directory = os.path.isdir(path) and not os.path.islink(path)
            found[os.path.relpath(path, root)] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                None if is_directory else (status.st_size, status.st_nlink),
                int(status.st_mtime),
                os.readlink(path) if os.path.islink(path) else None,
                {attribute: os.getxattr(path, attribute, follow_symlinks=False) for attribute in _attributes(path)},
            )
    return found


def _attributes(path: str) -> list[str]:
    return [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith(("user.", "security.cap"))]


def test_a_distribution_is_unpacked_as_umoci_does_and_boots(tmp_path: Path) -> None:
    def fill(root: Path) -> None:
        run("cp", "-a", f"{debian()}/.", root)

    layout = make_image(tmp_path / "image", [fill])
    run("umoci", "unpack", "--image", f"{layout}:it", tmp_path / "bundle")
    with (
        registry(tmp_path / "registry") as hub,
        serving(tmp_path) as server,
        SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client,
    ):
        image = hub.push(layout, "debian")
        snapshot = client.create_snapshot("debian", image, 1 << 30, timeout=120)
        (layer,) = (server.state_dir / "layers").glob("[0-9]*")
        ours, theirs = listing(layer / "tree"), listing(tmp_path / "bundle/rootfs")
        assert len(ours) > 5000
        different = [path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)]
        assert different == []
        with client.sandbox(snapshot.id) as sandbox:
            assert sandbox.run("dpkg --version").stdout.startswith("Debian")
            done = sandbox.run("useradd --create-home bob && su bob -c 'id -un; touch ~/mine' && dpkg --audit")
            assert (done.stdout, done.exit_code) == ("bob\n", 0)
            captured = sandbox.capture_snapshot("with-bob")
        with client.sandbox(captured.id) as sandbox:
            assert sandbox.run("su bob -c 'ls -l ~/mine'").stdout.split()[2:4] == ["bob", "bob"]
