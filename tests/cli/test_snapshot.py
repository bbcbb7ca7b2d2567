"""`sandbox-aio snapshot`: what it says and does, on a real server with a real registry, and on ones that answer to
order.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from sandbox_aio import SandboxClient
from sandbox_aio.cli import main
from sandbox_aio.cli.engine import engine_address
from sandbox_aio.cli.snapshot import default_name
from sandbox_aio.cli.snapshot_parser import size
from tests.client.fake_service import Reply, Request, error, fake_service
from tests.registry import registry
from tests.serving import API_KEY, Server, serving
from tests.small_images import shell_image

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

PROGRAM = [sys.executable, "-c", "import sys; from sandbox_aio.cli import main; sys.exit(main())", "snapshot"]
TIMEOUT = 30.0
BASE = "/api/v2/sandboxes"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of a registry that is up: `HOST/team/shell:v1`."""
    with registry(tmp_path_factory.mktemp("hub")) as hub:
        yield hub.push(shell_image(tmp_path_factory.mktemp("image")), "team/shell", tag="v1")


def run(server: Server, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LANGSMITH_ENDPOINT": server.origin, "LANGSMITH_API_KEY": API_KEY}
    done = subprocess.run(
        [*PROGRAM, *arguments], input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True, timeout=TIMEOUT, env=environment, check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


# --- what is typed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("debian:12", "debian"),
        ("library/debian", "debian"),
        ("docker.io/library/debian@sha256:1234", "debian"),
        ("localhost/app", "app"),
        ("localhost:5000/Team/app:1@sha256:1", "team/app"),
        ("registry.example/a/b/c", "a/b/c"),
        ("team/app", "team/app"),
    ],
)
def test_a_snapshot_is_called_as_its_image_without_the_registry(image: str, name: str) -> None:
    assert default_name(image) == name


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("2kB", 2000), ("2KiB", 2048), ("2k", 2048), ("1.5G", 3 << 29), ("8 GiB", 1 << 33), ("1tb", 10**12)],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["pull"],
        ["pull", "a", "--capacity", "much"],
        ["pull", "a", "--capacity", "0"],
        ["pull", "a", "--timeout", "0"],
        ["build", "."],
        ["build", ".", "--name", "a", "--build-arg", "WHO"],
        ["rm"],
        ["tag", "a"],
        ["ls", "x"],
    ],
)
def test_a_wrong_command_line_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["snapshot", *arguments])
    assert caught.value.code == 2
    assert "usage: sandbox-aio" in capsys.readouterr().err


@pytest.mark.parametrize("endpoint", ["", "local"])
def test_without_a_server_it_says_how_to_start_one(
    endpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LANGCHAIN_ENDPOINT", raising=False)
    monkeypatch.setenv("LANGSMITH_ENDPOINT", endpoint)
    assert main(["snapshot", "ls"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "sandbox-aio serve --no-ephemeral" in said


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_pulled_listed_tagged_captured_and_removed(server: Server, image: str) -> None:
    pulled = run(server, "pull", image, "--capacity", "64MiB")
    assert pulled.returncode == 0, pulled.stderr
    assert re.fullmatch(r"team/shell:v1  [0-9a-f-]{36}  \d+\.\d MB\n", pulled.stdout)
    id = pulled.stdout.split()[1]
    assert run(server, "tag", "team/shell:v1", "other:t").stdout == f"other:t  {id}\n"
    assert run(server, "tag", id, "other").stdout == f"other:latest  {id}\n"
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
        with client.sandbox(snapshot="other:t") as sandbox:
            sandbox.write("/kept", "x")
            captured = run(server, "capture", sandbox.name, "caught:t")
        assert re.fullmatch(r"caught:t  [0-9a-f-]{36}  \d+\.\d MB\n", captured.stdout), captured.stderr
        with client.sandbox(snapshot="caught:t") as sandbox:
            assert sandbox.read("/kept") == b"x"
    header, *rows = run(server, "ls").stdout.splitlines()
    assert header.split() == ["NAME", "TAGS", "STATUS", "SIZE", "ID"]
    assert [row.split()[0] for row in rows if " ready " in row] == ["caught", "host", "team/shell"]
    (found,) = json.loads(run(server, "ls", "--json", "--name-contains", "team/sh").stdout)
    assert (found["id"], found["docker_image"], found["status"]) == (id, image, "ready")
    removed = run(server, "rm", "caught:t", "no-such", id)
    assert (removed.returncode, removed.stdout) == (1, f"caught:t\n{id}\n")
    assert re.fullmatch(r"sandbox-aio: .*no-such.*\n", removed.stderr)
    assert json.loads(run(server, "ls", "--json", "--name-contains", "team/sh").stdout) == []


@pytest.mark.root
def test_a_dockerfile_is_built_and_its_log_shown(server: Server, tmp_path: Path) -> None:
    shutil.copy("/bin/busybox", tmp_path / "busybox")
    (tmp_path / "File").write_text(
        "FROM scratch AS base\nARG WHO\nCOPY busybox /bin/sh\nRUN echo built for $WHO\nFROM base\nRUN exit 7\n"
    )
    options = ["build", str(tmp_path), "-f", "File", "--name", "built"]
    built = run(server, *options, "--build-arg", "WHO=you", "--target", "base", "--capacity", "64MiB")
    assert built.returncode == 0, built.stderr
    assert re.fullmatch(r"built:latest  [0-9a-f-]{36}  \d+\.\d MB\n", built.stdout)
    assert "built for you" in built.stderr
    failed = run(server, *options)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert re.search(r"^sandbox-aio: the build failed with exit code \d+\n\Z", failed.stderr, re.MULTILINE)
    quiet = run(server, *options, "--quiet")
    assert (quiet.returncode, quiet.stdout) == (1, "")
    assert quiet.stderr.startswith("sandbox-aio: the build failed with exit code")
    assert "exit 7" in quiet.stderr
    assert run(server, "rm", "built").returncode == 0


@pytest.mark.root
def test_an_image_that_is_not_there_is_one_sentence(server: Server, image: str) -> None:
    missing = f"{image.rpartition(':')[0]}:no-such"
    done = run(server, "pull", missing, "--name", "missing", "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"sandbox-aio: .+\n", done.stderr)
    assert "no-such" in done.stderr


@pytest.mark.root
def test_a_terminal_gets_one_line_that_is_cleared(server: Server, image: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "LANGSMITH_ENDPOINT": server.origin, "LANGSMITH_API_KEY": API_KEY}
    command = [*PROGRAM, "pull", image, "--name", "terminal", "--capacity", "64MiB"]
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
        os.close(theirs)
        with process:
            assert process.stdout is not None
            assert process.stdout.read().startswith(b"terminal:v1  ")
            assert process.wait(TIMEOUT) == 0
        shown = b""
        try:
            while piece := terminal.read(65536):
                shown += piece
        except OSError:
            pass  # This is how Linux says that nobody has the other end.
    assert shown.endswith(b"\r\x1b[K")
    assert b"\n" not in shown
    assert run(server, "rm", "terminal:v1").returncode == 0


# --- servers and engines that answer to order -------------------------------------------------------------------------


def made(status: str, message: str | None = None) -> dict[str, Any]:
    return {
        "id": "i", "name": "n", "status": status, "tags": ["t"], "fs_capacity_bytes": 5, "status_message": message,
        "fs_used_bytes": 2_500_000,
    }  # fmt: skip


async def run_on(url: str, *arguments: str) -> int:
    """Run the command in a thread, on the service at `url`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGSMITH_ENDPOINT", url)
        patch.setenv("LANGSMITH_API_KEY", "k")
        return await anyio.to_thread.run_sync(main, ["snapshot", *arguments])


class Importing:
    """A service that takes archives, and an engine that has one image."""

    def __init__(self) -> None:
        self.taken: dict[str, bytes] = {}
        self.looks = [made("building", f"pulling: 1 of 2 layers, {n}.0 of 3.0 MB") for n in range(3)]
        self.looks.append(made("building", "pulling: 2 of 2 layers, 3.0 of 3.0 MB"))

    async def __call__(self, request: Request) -> Reply:
        if request.path == "/images/reg.example:5000/app:1/get":
            return Reply(body=b"saved" * 1000)
        if request.path.startswith("/images/"):
            return Reply(status=404, json={"message": "No such image: nothing"})
        if request.path == f"{BASE}/snapshots/import":
            self.taken[request.target] = request.body
            return Reply(status=201, json=made("ready"))
        if request.path == f"{BASE}/snapshots/n:t/push":
            return Reply(json={"image": "h/i", "digest": "sha256:1"})
        if request.method == "POST":
            return Reply(status=201, json=made("building"))
        return Reply(json=self.looks.pop(0) if self.looks else made("ready", "2 devices were left out"))


@pytest.fixture
async def importing() -> AsyncGenerator[tuple[Importing, str]]:
    handler = Importing()
    async with fake_service(handler) as service:
        yield handler, service.url


@pytest.mark.anyio
async def test_progress_is_plain_lines_and_notes_come_last(
    importing: tuple[Importing, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_on(importing[1], "pull", "debian") == 0
    out, err = capsys.readouterr()
    assert out == "n:t  i  2.5 MB\n"
    assert err.splitlines() == [
        "pulling: 1 of 2 layers, 0.0 of 3.0 MB",
        "pulling: 2 of 2 layers, 3.0 of 3.0 MB",
        "sandbox-aio: 2 devices were left out",
    ]


@pytest.mark.anyio
async def test_quiet_shows_no_progress(importing: tuple[Importing, str], capsys: pytest.CaptureFixture[str]) -> None:
    importing[0].looks = importing[0].looks[:2]
    assert await run_on(importing[1], "pull", "debian", "--quiet") == 0
    assert capsys.readouterr().err == "sandbox-aio: 2 devices were left out\n"


@pytest.mark.anyio
async def test_a_file_is_imported(importing: tuple[Importing, str], tmp_path: Path) -> None:
    handler, url = importing
    file = tmp_path / "image.tar"
    file.write_bytes(b"tar" * 1_000_000)
    assert await run_on(url, "import", str(file), "team/n:t", "--capacity", "1GiB") == 0
    assert handler.taken == {
        f"{BASE}/snapshots/import?name=team%2Fn&tag=t&fs_capacity_bytes={1 << 30}": b"tar" * 1_000_000
    }


@pytest.mark.anyio
async def test_stdin_is_imported(importing: tuple[Importing, str]) -> None:
    handler, url = importing
    environment = {**os.environ, "LANGSMITH_ENDPOINT": url, "LANGSMITH_API_KEY": "k"}
    done = await anyio.run_process([*PROGRAM, "import", "-", "n"], input=b"tar" * 100_000, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, b"n:t  i  2.5 MB\n")
    assert list(handler.taken.values()) == [b"tar" * 100_000]


@pytest.mark.anyio
@pytest.mark.parametrize(("engine", "variable"), [("docker", "DOCKER_HOST"), ("podman", "CONTAINER_HOST")])
async def test_an_engine_is_asked(
    importing: tuple[Importing, str], engine: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = importing
    monkeypatch.setenv(variable, url.replace("http://", "tcp://"))
    assert await run_on(url, "import", f"{engine}:reg.example:5000/app:1", "n:t") == 0
    assert list(handler.taken.values()) == [b"saved" * 1000]


@pytest.mark.anyio
async def test_an_image_that_the_engine_does_not_have(
    importing: tuple[Importing, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = importing
    monkeypatch.setenv("DOCKER_HOST", url.replace("http://", "tcp://"))
    assert await run_on(url, "import", "docker:nothing", "n") == 1
    said = "sandbox-aio: docker does not give 'nothing': No such image: nothing (docker pull nothing)\n"
    assert capsys.readouterr().err == said
    assert handler.taken == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("source", "address", "said"),
    [
        ("docker:a", "unix:///no/such/socket", "cannot reach docker at unix:///no/such/socket"),
        ("docker:a", "ssh://elsewhere", "neither unix:// nor tcp://"),
        ("no-such-file", "", "cannot read no-such-file: No such file or directory"),
    ],
)
async def test_what_cannot_be_read_is_one_sentence(
    importing: tuple[Importing, str],
    source: str,
    address: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    assert await run_on(importing[1], "import", source, "n") == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


class Engine(BaseHTTPRequestHandler):
    """An engine on a socket, that breaks off in the middle."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "100")
        self.end_headers()
        self.wfile.write(b"half")

    def address_string(self) -> str:
        return "socket"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def engine_on(path: Path) -> Iterator[None]:
    with socketserver.UnixStreamServer(str(path), Engine) as engine:
        thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            engine.shutdown()
            thread.join()


@pytest.mark.anyio
async def test_an_engine_on_its_socket_that_breaks_off(
    importing: tuple[Importing, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler, url = importing
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine")
    with engine_on(tmp_path / "engine"):
        assert await run_on(url, "import", "docker:a", "n", "--quiet") == 1
    assert re.fullmatch(r"sandbox-aio: docker broke off: .+\n", capsys.readouterr().err)
    assert handler.taken == {}


def test_engines_are_looked_for_where_they_are(tmp_path: Path) -> None:
    assert engine_address("docker", {"DOCKER_HOST": "tcp://h:1"}) == "tcp://h:1"
    (tmp_path / "podman").mkdir()
    (tmp_path / "podman/podman.sock").touch()
    assert engine_address("podman", {"XDG_RUNTIME_DIR": str(tmp_path)}) == f"unix://{tmp_path}/podman/podman.sock"


@pytest.mark.anyio
async def test_ctrl_c_ends_it_without_a_word() -> None:
    looked = anyio.Event()

    async def handler(request: Request) -> Reply:
        if request.method == "GET":
            looked.set()
        return Reply(status=200, json=made("building"))

    async with fake_service(handler) as service:
        environment = {**os.environ, "LANGSMITH_ENDPOINT": service.url, "LANGSMITH_API_KEY": "k"}
        async with await anyio.open_process([*PROGRAM, "pull", "debian"], env=environment) as process:
            await looked.wait()
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            said = b"".join([piece async for piece in process.stderr])
            assert (await process.wait(), said) == (130, b"")


@pytest.mark.anyio
async def test_a_push_prints_the_digest(importing: tuple[Importing, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_on(importing[1], "push", "n:t", "h/i", "--quiet") == 0
    assert capsys.readouterr() == ("sha256:1\n", "")


@pytest.mark.anyio
async def test_a_failure_is_the_servers_words(capsys: pytest.CaptureFixture[str]) -> None:
    async def handler(request: Request) -> Reply:
        return error(401, "Unauthorized", "who are you?")

    async with fake_service(handler) as service:
        assert await run_on(service.url, "ls") == 1
    assert capsys.readouterr().err.startswith("sandbox-aio: who are you?")


@pytest.mark.anyio
async def test_all_pages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    async def handler(request: Request) -> Reply:
        count = 500 if request.query.get("offset", "0") == "0" else 3
        return Reply(json={"snapshots": [made("ready")] * count})

    async with fake_service(handler) as service:
        assert await run_on(service.url, "ls") == 0
    assert len(capsys.readouterr().out.splitlines()) == 504


@pytest.mark.root
def test_a_reader_that_leaves_ends_it_without_a_word(server: Server) -> None:
    environment = {**os.environ, "LANGSMITH_ENDPOINT": server.origin, "LANGSMITH_API_KEY": API_KEY}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*PROGRAM, "ls"], stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=TIMEOUT, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
