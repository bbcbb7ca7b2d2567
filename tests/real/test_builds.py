"""Building from Dockerfiles, with the real buildah in real sandboxes."""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest

from sandbox_aio import AsyncSandboxClient, CommandTimeoutError, ResourceCreationError, Sandbox, SandboxClient
from tests.registry import Registry, make_image, registry
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

ACCOUNTS = "root:x:0:0::/:/bin/sh\\nalice:x:1234:1234::/:/bin/sh\\n"
STAGES = f"""
FROM scratch AS tools
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc /tmp && chmod 1777 /tmp && printf '{ACCOUNTS}' > /etc/passwd && printf 'alice:x:1234:\\n' > /etc/group

FROM tools AS work
ARG WHO=nobody
COPY --chown=alice:alice notes /home/notes
USER alice
RUN echo "built for $WHO by $(id -u)" > /tmp/greeting
ENV COLOUR=blue
WORKDIR /home

FROM work AS last
RUN exit 7
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that sandboxes reach through the proxy by this machine's name: its loopback is not theirs."""
    address = socket.gethostbyname(socket.gethostname())
    with registry(tmp_path_factory.mktemp("hub"), address=address) as running:
        yield running


def named(host: str) -> str:
    """The name that a registry has for sandboxes."""
    return f"{socket.gethostname()}:{host.rpartition(':')[2]}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hub: Registry) -> Iterator[Server]:
    options = ("--egress-allow", named(hub.host), "--registry-insecure", named(hub.host))
    with serving(tmp_path_factory.mktemp("builds"), *options) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[SandboxClient]:
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as made:
        yield made
        assert [sandbox.name for sandbox in made.list_sandboxes()] == []


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "notes").mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "busybox")
    (folder / "Dockerfile").write_text(STAGES)
    (folder / "notes/kept.txt").write_text("kept")
    (folder / "notes/secret.key").write_text("never sent")
    (folder / ".dockerignore").write_text("**/*.key\n")
    return folder


def test_stages_arguments_owners_and_users(client: SandboxClient, context: Path) -> None:
    log: list[str] = []
    snapshot = client.create_snapshot_from_dockerfile(
        "built", "Dockerfile", 1 << 26, context=context, build_args={"WHO": "you"}, target="work",
        on_build_log=log.append, timeout=50,
    )  # fmt: skip
    assert (snapshot.status, snapshot.tags) == ("ready", ["latest"])
    assert "STEP" in "".join(log)
    with client.sandbox(snapshot="built") as sandbox:
        result = sandbox.run("id -u; pwd; cat /tmp/greeting; echo $COLOUR; ls -l /home/notes; cat /home/notes/kept.txt")
        uid, folder, greeting, colour, _, listed, kept = result.stdout.splitlines()
        assert (uid, folder, greeting, colour, kept) == ("1234", "/home", "built for you by 1234", "blue", "kept")
        assert listed.split()[2:4] == ["alice", "alice"]
    client.delete_snapshot(snapshot.id)


def test_a_step_that_fails_ends_with_its_log(client: SandboxClient, context: Path) -> None:
    with pytest.raises(ResourceCreationError, match=r"(?s)exit code 7:.*RUN exit 7"):
        client.create_snapshot_from_dockerfile("failing", "Dockerfile", 1 << 26, context=context, timeout=50)
    assert client.list_snapshots(name_contains="failing") == []


def test_a_build_that_takes_too_long_is_ended(client: SandboxClient, context: Path) -> None:
    (context / "Dockerfile").write_text(STAGES.replace("RUN exit 7", "RUN sleep 1000"))
    with pytest.raises(CommandTimeoutError):
        client.create_snapshot_from_dockerfile("slow", "Dockerfile", 1 << 26, context=context, timeout=8)


def test_an_image_of_a_registry_is_built_upon_and_its_layers_are_shared(
    client: SandboxClient, hub: Registry, server: Server, tmp_path: Path
) -> None:
    def base(root: Path) -> None:
        (root / "bin").mkdir()
        shutil.copy("/bin/busybox", root / "bin/sh")

    image = hub.push(make_image(tmp_path / "image", [base]), "base").replace(hub.host, named(hub.host))
    pulled = client.create_snapshot("base", image, 1 << 26)
    before = len(list((server.state_dir / "layers").glob("[0-9]*")))
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {image}\nRUN echo more > /more\n")
    built = client.create_snapshot_from_dockerfile("upon", "Dockerfile", 1 << 26, context=folder, timeout=50)
    assert len(list((server.state_dir / "layers").glob("[0-9]*"))) == before + 1
    with client.sandbox(built.id) as sandbox:
        assert sandbox.run("read line < /more; echo $line").stdout == "more\n"
    for snapshot in (pulled, built):
        client.delete_snapshot(snapshot.id)


@pytest.mark.anyio
async def test_a_build_in_async_that_is_cancelled_leaves_nothing(server: Server, context: Path) -> None:
    (context / "Dockerfile").write_text(STAGES.replace("RUN exit 7", "RUN echo here; sleep 1000"))
    async with AsyncSandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
        begun = anyio.Event()

        def look(text: str) -> None:
            if "here" in text:
                begun.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: client.create_snapshot_from_dockerfile(
                    "cancelled", "Dockerfile", 1 << 26, context=context, on_build_log=look, timeout=50
                )
            )
            with anyio.fail_after(40):
                await begun.wait()
            tasks.cancel_scope.cancel()
        assert [sandbox.name for sandbox in await client.list_sandboxes()] == []
        assert await client.list_snapshots(name_contains="cancelled") == []


@pytest.fixture
def builder(client: SandboxClient, server: Server) -> Iterator[Sandbox]:
    """What a build runs in."""
    made = httpx.post(f"{server.endpoint}/snapshots/builder", headers={"x-api-key": API_KEY}, json={})
    sandbox = client.get_sandbox(made.json()["name"])
    yield sandbox
    sandbox.delete()


def test_only_a_builder_may_mount(client: SandboxClient, builder: Sandbox) -> None:
    script = "mkdir -p /m && unshare --mount sh -c 'mount -t tmpfs none /m && echo mounted'"
    assert builder.run(script).stdout == "mounted\n"
    with client.sandbox() as sandbox:
        assert "mounted" not in sandbox.run(script).stdout


ESCAPES: dict[str, str] = {
    "the host's files": "ls /proc/1/root/var/lib/sandbox-aio; cat /etc/shadow | grep -v '^root:[*!]'",
    "another mount namespace": "nsenter --mount=/proc/1/ns/mnt true && echo in",
    "devices": "mkdir -p /d && mount -t devtmpfs none /d && echo in; mknod /dev/x b 254 0 && head -c1 /dev/x",
    "kernel switches": "echo 1 > /proc/sys/kernel/panic && echo in",
    "cgroups": "mkdir /c; mount -t cgroup -o memory c /c; mkdir /c/x/y && echo in; echo 0 >/c/cgroup.procs && echo in",
    "modules": "modprobe dummy 2>/dev/null && echo in",
    "the network": "ip link add d0 type dummy 2>/dev/null && ip link set d0 up && echo in",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_a_builder_reaches_no_further_than_its_own_namespaces(builder: Sandbox, what: str) -> None:
    assert builder.run(ESCAPES[what]).stdout == ""


def test_a_server_that_builds_nothing_says_so(tmp_path: Path, context: Path) -> None:
    with serving(tmp_path, "--no-builds") as server:
        with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
            with pytest.raises(Exception, match="--no-builds"):
                client.create_snapshot_from_dockerfile("x", "Dockerfile", 1 << 26, context=context)


@pytest.mark.parametrize(
    ("dockerfile", "context_name", "reason"),
    [
        ("Nothing", "context", "there is no Dockerfile"),
        ("Dockerfile", "nowhere", "is no folder"),
        ("../outside", "context", "is not in the context"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_sent(
    client: SandboxClient, context: Path, dockerfile: str, context_name: str, reason: str
) -> None:
    (context.parent / "outside").touch()
    with pytest.raises(ValueError, match=reason):
        client.create_snapshot_from_dockerfile("x", dockerfile, context=context.parent / context_name)
