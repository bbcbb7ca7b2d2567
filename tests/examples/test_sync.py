"""The documentation's examples, as a reader would type them into a plain program, with our client and the official.

The names E1 to E15 are the examples' places in it. E10 to E12 and E14, which need more, are in `tests/real`.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.examples.conftest import OFFICIAL, OFFICIAL_MARKS, OURS
from tests.examples.programs import BUILD_STDERR, BUILD_STDOUT, MAKEFILE, SERVER, TRAIN

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=[OURS, pytest.param(OFFICIAL, marks=OFFICIAL_MARKS)])
def m(request: pytest.FixtureRequest) -> Any:
    """The module that an example imports from."""
    return importlib.import_module(request.param)


@pytest.fixture
def client(m: Any) -> Iterator[Any]:
    with m.SandboxClient() as opened:
        yield opened


@pytest.fixture
def snapshot_id(client: Any) -> str:
    """The snapshot that every example starts from."""
    found: str = client.get_snapshot("host").id
    return found


@pytest.fixture
def open_input(m: Any) -> dict[str, bool]:
    """What keeps a command's input open: with ours `wait=False` is enough, the official client wants an option."""
    return {} if m.__name__ == OURS else {"close_input": False}


@pytest.fixture
def sb(client: Any, snapshot_id: str) -> Iterator[Any]:
    with client.sandbox(snapshot_id=snapshot_id) as made:
        made.write("Makefile", MAKEFILE)
        made.write("server.py", SERVER)
        for name in ("train.py", "background_job.py"):
            made.write(name, TRAIN)
        yield made


def test_e1_create_and_run(m: Any, snapshot_id: str) -> None:
    client = m.SandboxClient()
    with client.sandbox(snapshot_id=snapshot_id) as sb:
        result = sb.run("python -c 'print(2 + 2)'")
        assert result.stdout == "4\n"
        assert result.success is True
    client.close()


def test_e2_results(sb: Any) -> None:
    result = sb.run("echo 'Hello, World!'")
    assert (result.stdout, result.stderr, result.exit_code) == ("Hello, World!\n", "", 0)
    assert result.success is True
    result = sb.run("exit 1")
    assert (result.success, result.exit_code) == (False, 1)


def test_e3_callbacks(sb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = sb.run(
        "make build",
        timeout=600,
        on_stdout=lambda s: print(s, end=""),
        on_stderr=lambda s: print(s, end="", file=sys.stderr),
    )
    assert result.success
    assert tuple(capsys.readouterr()) == (BUILD_STDOUT, BUILD_STDERR)


def test_e4_handle(sb: Any) -> None:
    handle = sb.run("make build", timeout=600, wait=False)
    assert handle.command_id
    seen = {"stdout": "", "stderr": ""}
    for chunk in handle:
        seen[chunk.stream] += chunk.data
    assert seen == {"stdout": BUILD_STDOUT, "stderr": BUILD_STDERR}
    assert handle.result.exit_code == 0


def test_e5_input(sb: Any, open_input: dict[str, bool]) -> None:
    program = 'python -c \'name = input("Name: "); print(f"Hello {name}")\''
    handle = sb.run(program, timeout=30, wait=False, **open_input)
    for chunk in handle:
        if "Name:" in chunk.data:
            handle.send_input("World\n")
    assert handle.result.stdout == "Name: Hello World\n"


def test_e6_kill(sb: Any) -> None:
    handle = sb.run("python server.py", timeout=0, wait=False)
    for chunk in handle:
        if "Ready" in chunk.data:
            break
    handle.kill()
    assert sb.reconnect(handle.command_id).result.exit_code == 137


def test_e7_reconnect_while_the_first_handle_is_never_read(sb: Any) -> None:
    handle = sb.run("make build", timeout=600, wait=False)
    command_id = handle.command_id
    handle = sb.reconnect(command_id)
    output = "".join(chunk.data for chunk in handle if chunk.stream == "stdout")
    assert output == handle.result.stdout == BUILD_STDOUT
    assert handle.result.stderr == BUILD_STDERR


def test_e8_files(sb: Any) -> None:
    sb.write("/app/script.py", "print('Hello from file!')")
    assert sb.run("python /app/script.py").stdout == "Hello from file!\n"
    assert sb.read("/app/script.py").decode() == "print('Hello from file!')"
    sb.write("/app/data.bin", b"\x00\x01\x02\x03")
    assert sb.read("/app/data.bin") == b"\x00\x01\x02\x03"


def test_e9_commands_that_outlive_their_handles(sb: Any) -> None:
    sb.run("python train.py", timeout=0, idle_timeout=1800, ttl_seconds=3600, wait=False)
    sb.run("python background_job.py", timeout=0, idle_timeout=-1, ttl_seconds=-1, wait=False)
    gc.collect()
    for log in ("train.py.log", "background_job.py.log"):
        first = _grown(sb, log, 0)
        assert _grown(sb, log, first) > first


def _grown(sb: Any, log: str, size: int) -> int:
    """Return the size of `log` in bytes once it is larger than `size`."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        sizes = [entry.size_bytes for entry in sb.ls("/home/user") if entry.path.endswith(f"/{log}")]
        if sizes and sizes[0] > size:
            return int(sizes[0])
        time.sleep(0.02)
    raise TimeoutError(f"{log} does not grow beyond {size} bytes")


def test_e9_kill_on_disconnect_is_accepted(sb: Any) -> None:
    assert sb.run("echo hi", kill_on_disconnect=True).stdout == "hi\n"


def test_e15_errors(m: Any, client: Any, snapshot_id: str) -> None:
    for name in (
        "ResourceCreationError",
        "ResourceNotFoundError",
        "ResourceTimeoutError",
        "SandboxNotReadyError",
        "SandboxConnectionError",
        "CommandTimeoutError",
        "QuotaExceededError",
    ):
        assert issubclass(getattr(m, name), m.SandboxClientError)
    with pytest.raises(m.CommandTimeoutError), client.sandbox(snapshot_id=snapshot_id) as sb:
        sb.run("sleep 999", timeout=1)
    with pytest.raises(m.ResourceNotFoundError) as caught:
        client.get_sandbox("no-such-sandbox")
    assert caught.value.resource_type == "sandbox"
