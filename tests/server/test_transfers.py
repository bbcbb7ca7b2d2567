"""Snapshots that arrive as archives and leave for a registry, through a whole server with real layers."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from sandbox_aio import (
    ResourceCreationError,
    ResourceNotFoundError,
    SandboxClient,
    SandboxClientError,
    ValidationError,
)
from tests.registry import Registry, make_image, registry, run
from tests.runtimes.roots import small_root
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[SandboxClient]:
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as made:
        yield made


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a shell."""

    def fill(root: Path) -> None:
        small_root(root)
        (root / "gone").write_text("soon")

    folder = tmp_path_factory.mktemp("image")
    return make_image(folder, [fill, lambda root: (root / "gone").unlink()], {"config.workingdir": ["/etc"]})


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_an_archive_becomes_a_snapshot(client: SandboxClient, layout: Path, tmp_path: Path, form: str) -> None:
    archive = tmp_path / "image.tar"
    run("skopeo", "copy", "-q", f"oci:{layout}:it", f"{form}:{archive}:it:1")
    snapshot = client.import_snapshot(f"imported/{form}", archive, tag="one", fs_capacity_bytes=1 << 28)
    assert (snapshot.status, snapshot.tags) == ("ready", ["one"])
    with client.sandbox(snapshot=f"imported/{form}:one") as sandbox:
        assert sandbox.run("pwd; cat /gone", env={"PATH": "/bin"}).stdout == "/etc\n"
    client.delete_snapshot(snapshot.id)


def test_a_capture_that_is_pushed_is_read_by_others(
    client: SandboxClient, layout: Path, hub: Registry, tmp_path: Path
) -> None:
    base = client.create_snapshot("base", hub.push(layout, "base"), 1 << 28)
    with client.sandbox(base.id) as sandbox:
        sandbox.run("echo mine > /etc/mine; : > /etc/group", env={"PATH": "/bin"})
        captured = sandbox.capture_snapshot("captured")
    digest = client.push_snapshot("captured", f"{hub.host}/captured:1")
    assert client.push_snapshot(captured.id, f"{hub.host}/captured:1") == digest
    name = f"docker://{hub.host}/captured:1"
    assert run("skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", name).strip() == digest
    run("skopeo", "copy", "-q", "--src-tls-verify=false", name, f"oci:{tmp_path}/layout:it")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:it", tmp_path / "bundle")
    root = tmp_path / "bundle/rootfs"
    assert (root / "etc/mine").read_text() == "mine\n"
    assert (root / "etc/group").read_text() == ""
    assert not (root / "gone").exists()
    again = client.create_snapshot("again", f"{hub.host}/captured:1", 1 << 28)
    with client.sandbox(again.id) as sandbox:
        assert sandbox.run("cat mine", env={"PATH": "/bin"}).stdout == "mine\n"
    for snapshot in (base, captured, again):
        client.delete_snapshot(snapshot.id)


def test_a_snapshot_of_the_machine_itself_is_no_image(client: SandboxClient, hub: Registry) -> None:
    with pytest.raises(SandboxClientError, match="the server's own files"):
        client.push_snapshot("host", f"{hub.host}/host:1")
    with pytest.raises(ResourceNotFoundError):
        client.push_snapshot("nothing", f"{hub.host}/host:1")
    with pytest.raises(ValidationError, match="is not the name of an image"):
        client.push_snapshot("host", "Not An Image")


def test_a_registry_that_is_not_there_is_said_so(client: SandboxClient, layout: Path, hub: Registry) -> None:
    snapshot = client.create_snapshot("lonely", hub.push(layout, "lonely"), 1 << 28)
    with pytest.raises(SandboxClientError, match="cannot be reached"):
        client.push_snapshot("lonely", "127.0.0.1:1/lonely:1")
    client.delete_snapshot(snapshot.id)


def test_what_is_no_archive_fails_and_leaves_no_file(client: SandboxClient, server: Server) -> None:
    with pytest.raises(ResourceCreationError, match="no tar archive"):
        client.import_snapshot("nonsense", b"nonsense" * 1000)
    with pytest.raises(SandboxClientError, match="no tar archive"):
        client.import_snapshot("packed", gzip.compress(b"x" * 1000))
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    with pytest.raises(ResourceCreationError, match=r"neither index\.json nor manifest\.json"):
        client.import_snapshot("empty", empty.getvalue())
    with pytest.raises(ValidationError, match="name"):
        client.import_snapshot("Bad Name", b"x")
    for snapshot in client.list_snapshots():
        if snapshot.name != "host":
            client.delete_snapshot(snapshot.id)
    assert [path for path in (server.state_dir / "blobs").iterdir()] == []
