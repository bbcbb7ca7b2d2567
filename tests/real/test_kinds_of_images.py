"""Images of every kind: what can run in them runs, and the rest is a clear error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandbox_aio import Sandbox, SandboxClient, SandboxOperationError
from tests.real.root_trees import kinds
from tests.registry import make_image, registry, run
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root  # umoci makes the images, with all their owners

NAMES = ["alpine", "busybox", "distroless", "shell-less"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a sandbox of each kind, called after it, of an image that came from a registry."""
    folder = tmp_path_factory.mktemp("images")
    with registry(folder / "registry") as hub, serving(folder) as running:
        with SandboxClient(api_endpoint=running.endpoint, api_key=API_KEY) as client:
            for name, root in kinds(folder / "roots").items():

                def fill(target: Path, root: Path = root) -> None:
                    run("cp", "-a", f"{root}/.", target)

                image = hub.push(make_image(folder / "made" / name, [fill]), name)
                client.create_snapshot(name, image, 1 << 28)
                client.create_sandbox(snapshot=name, name=name)
        yield running


@pytest.fixture
def boxes(server: Server) -> Iterator[Callable[[str], Sandbox]]:
    """Finds one of the sandboxes."""
    with SandboxClient(api_endpoint=server.endpoint, api_key=API_KEY) as client:
        yield client.get_sandbox


@pytest.mark.parametrize("name", ["alpine", "busybox"])
def test_a_shell_that_is_not_bash_serves(boxes: Callable[[str], Sandbox], name: str) -> None:
    assert boxes(name).run("echo one; (exit 3) || echo $0").stdout == "one\n/bin/sh\n"


def test_programs_for_musl_find_their_loader(boxes: Callable[[str], Sandbox]) -> None:
    assert boxes("alpine").run("greet you").stdout == "greet says hello to uid 0 you\n"


@pytest.mark.parametrize("name", ["distroless", "shell-less"])
@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("greet", "greet says hello to uid 0\n"),
        ("/bin/greet a 'b  c' \"d e\"", "/bin/greet says hello to uid 0 a b  c d e\n"),
        ("  greet --x=1,2 @home 100% \n", "greet says hello to uid 0 --x=1,2 @home 100%\n"),
    ],
)
def test_without_a_shell_a_program_and_its_words_are_run(
    boxes: Callable[[str], Sandbox], name: str, command: str, output: str
) -> None:
    assert boxes(name).run(command).stdout == output


@pytest.mark.parametrize(
    "command",
    ["greet; greet", "greet $HOME", "A=b greet", "greet | cat", "greet >x", "greet *", "`greet`", "", " ", "greet 'x"],
)  # fmt: skip
def test_without_a_shell_what_needs_one_is_refused_by_name(boxes: Callable[[str], Sandbox], command: str) -> None:
    with pytest.raises(SandboxOperationError, match="neither /bin/bash nor /bin/sh, and this command needs a shell"):
        boxes("distroless").run(command)


def test_a_program_can_take_the_place_of_the_shell(boxes: Callable[[str], Sandbox]) -> None:
    assert boxes("distroless").run("x; y", shell="/bin/greet").stdout.endswith("hello to uid 0 -c x; y\n")


@pytest.mark.parametrize(
    ("command", "reason"),
    [("nosuch", "the program 'nosuch' does not exist"), ("/bin", "cannot be started with"), ("/etc/passwd", "denied")],
)  # fmt: skip
def test_a_program_that_is_none_is_named(boxes: Callable[[str], Sandbox], command: str, reason: str) -> None:
    with pytest.raises(SandboxOperationError, match=reason):
        boxes("distroless").run(command)


def test_a_program_without_its_loader_is_explained(boxes: Callable[[str], Sandbox]) -> None:
    box = boxes("alpine")
    box.write("/opt/alien", boxes("distroless").read("/bin/greet"))
    box.run("chmod 755 /opt/alien")
    with pytest.raises(SandboxOperationError, match="'/opt/alien' is there, but not what it needs"):
        box.run("true", shell="/opt/alien")


@pytest.mark.parametrize("user", ["nonroot", "65532", "65532:65532", "nonroot:nonroot"])
def test_a_user_without_a_home_or_a_shell_runs_programs(boxes: Callable[[str], Sandbox], user: str) -> None:
    result = boxes("distroless").run("greet", run_config={"user": user})
    assert result.stdout == "greet says hello to uid 65532\n"


def test_a_user_that_the_image_does_not_know_is_named(boxes: Callable[[str], Sandbox]) -> None:
    with pytest.raises(SandboxOperationError, match="there is no user 'alice'"):
        boxes("distroless").run("greet", run_config={"user": "alice"})


@pytest.mark.parametrize("name", NAMES)
def test_files_can_be_written_and_read_in_any_of_them(boxes: Callable[[str], Sandbox], name: str) -> None:
    box = boxes(name)
    box.write("/data/deep/x.txt", "kept")
    assert box.read("/data/deep/x.txt") == b"kept"
    assert {"/bin", "/data"} <= {entry.path for entry in box.ls("/").matches}
