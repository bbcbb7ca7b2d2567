"""What the command line accepts, and what it says to what it does not."""

from __future__ import annotations

import socket
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.cli import main
from sandbox_aio.cli.run import command_line

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["echo $HOME | wc"], "echo $HOME | wc"),
        (["echo", "$HOME"], "echo '$HOME'"),
        (["printf", "%s", "a b", "it's"], """printf %s 'a b' 'it'"'"'s'"""),
    ],
)
def test_one_word_is_a_shell_line_and_several_are_arguments(words: list[str], line: str) -> None:
    assert command_line(words) == line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sandbox-aio {version('sandbox-aio')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--tty", "--"],
        ["serve", "--", "x"],
        [],
        ["fly"],
        ["run"],
        ["serve", "--port", "many"],
        ["serve", "--port", "65536"],
        ["serve", "--log-level", "loud"],
        ["serve", "x"],
    ],
)
def test_a_wrong_command_line_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: sandbox-aio" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["A", "=b", ""])
def test_a_variable_needs_name_and_value(variable: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--env", variable, "true"]) == 2
    assert capsys.readouterr().err == f"sandbox-aio: --env wants NAME=VALUE, not {variable!r}\n"


def test_serving_strangers_without_a_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0", "--state-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sandbox-aio: refusing to serve 0.0.0.0 without an API key")
    assert error.count("\n") == 1


def test_an_unknown_runtime_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--runtime", "magic", "--state-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "sandbox-aio: there is no runtime 'magic' (choose one of: namespaces)\n"


def test_a_state_directory_that_cannot_be_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["serve", "--port", "0", "--state-dir", str(tmp_path / "file" / "state")]) == 1
    assert capsys.readouterr().err.startswith("sandbox-aio: cannot use the state directory")


def test_a_server_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("LANGSMITH_ENDPOINT", f"http://127.0.0.1:{port}")
    assert main(["run", "true"]) == 1
    assert "sandbox-aio: could not connect" in capsys.readouterr().err


def test_a_fault_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(config: object) -> object:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("sandbox_aio.server.serve.make_runtime", broken)
    assert main(["serve", "--port", "0", "--state-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "sandbox-aio: the server failed: ZeroDivisionError('surprise') (--log-level debug shows where)\n"
    )
