"""`sandbox-aio run` as a process, in a sandbox of a server that it starts itself."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 30.0
PROGRAM = [sys.executable, "-c", "import sys; from sandbox_aio.cli import main; sys.exit(main())"]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("LANGSMITH_", "LANGCHAIN_"))}


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, "run", *arguments], input=stdin, capture_output=True, timeout=TIMEOUT, env=environment()
    )


@contextlib.contextmanager
def running(*arguments: str, terminal: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    streams = (subprocess.PIPE, subprocess.PIPE) if terminal is None else (terminal, terminal)
    process = subprocess.Popen(
        [*PROGRAM, "run", *arguments], stdin=streams[0], stdout=streams[1], stderr=streams[1], env=environment()
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_streams_and_exit_code_are_the_commands() -> None:
    done = run("--", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_arguments_environment_and_directory() -> None:
    done = run("--env", "A=it's b", "--cwd", "/tmp", "--", "sh", "-c", 'echo "$A" "$@" "$PWD"', "x", "a  b", "--", "-c")
    assert (done.returncode, done.stdout) == (0, b"it's b a  b -- -c /tmp\n")


def test_stdin_reaches_the_command_with_its_end() -> None:
    text = "äöü\n".encode() * 50_000
    done = run("--", "cat", stdin=text)
    assert (done.returncode, done.stdout) == (0, text)
    assert run("--", "wc -c").stdout.strip() == b"0"


def test_a_file_is_stdin_too() -> None:
    with open(__file__, "rb") as file:
        done = subprocess.run(
            [*PROGRAM, "run", "cat"], stdin=file, capture_output=True, timeout=TIMEOUT, env=environment()
        )
    with open(__file__, "rb") as file:
        assert done.stdout == file.read()


def test_a_dialogue() -> None:
    with running("--", "while read line; do echo got $line; done; echo over") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"got " + word + b"\n"
        process.stdin.close()
        assert process.stdout.readline() == b"over\n"
        assert process.wait(TIMEOUT) == 0


def test_a_timeout_is_said() -> None:
    done = run("--timeout", "1", "--", "echo begun; sleep 60")
    assert (done.returncode, done.stdout) == (1, b"begun\n")
    assert b"timeout of 1 s" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_an_unknown_snapshot_is_said() -> None:
    done = run("--snapshot", "no-such", "true")
    assert done.returncode == 1
    assert done.stderr.startswith(b"sandbox-aio: there is no snapshot 'no-such'")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_kills_the_command(number: signal.Signals, code: int) -> None:
    with running("--", "trap '' INT TERM; echo begun; sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        assert process.wait(TIMEOUT) == code
        assert process.stdout.read() == b""


def test_a_reader_that_leaves_ends_it() -> None:
    with running("--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(TIMEOUT) == 141


def read_until(terminal: int, text: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + TIMEOUT
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{text!r} did not come, but {seen!r}"
        seen += os.read(terminal, 4096)
    return seen


SHOW_SIZES = """
shown() { until test "$(stty size)" = "$1"; do sleep 0.02; done; echo size $1; }
tty; shown '33 99'; shown '44 111'; cat; echo over; sleep 60
"""


def test_a_terminal() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 99))
    before = termios.tcgetattr(theirs)
    try:
        with running("--tty", "--", SHOW_SIZES, terminal=theirs) as process:
            assert b"/dev/pts/" in read_until(ours, b"size 33 99\r\n")
            termios.tcsetwinsize(theirs, (44, 111))
            process.send_signal(signal.SIGWINCH)
            read_until(ours, b"size 44 111\r\n")
            os.write(ours, b"hello\r")
            read_until(ours, b"hello\r\nhello\r\n")  # The echo of the terminal inside, and the answer.
            os.write(ours, b"\x04")
            read_until(ours, b"over")
            os.write(ours, b"\x03")  # Ctrl-C is for the command.
            assert process.wait(TIMEOUT) == 130
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
