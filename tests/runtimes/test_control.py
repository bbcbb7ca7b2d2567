"""The zygote's messages, good and bad."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.runtimes.namespaces import control
from tests.runtimes.host import eventually
from tests.runtimes.machine import machine as machines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.runtimes.machine import Machine


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with contextlib.ExitStack() as stack:
        first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        yield stack.enter_context(first), stack.enter_context(second)


Pair = tuple[socket.socket, socket.socket]


def test_a_message_carries_descriptors(pair: Pair) -> None:
    read, write = os.pipe()
    control.send(pair[0], {"a": ["é", 1, None]}, [read, write])
    os.close(read)
    os.close(write)
    received = control.receive(pair[1])
    assert received is not None
    message, (new_read, new_write) = received
    assert message == {"a": ["é", 1, None]}
    assert not os.get_inheritable(new_read)
    os.write(new_write, b"through")
    os.close(new_write)
    assert os.read(new_read, 100) == b"through"
    os.close(new_read)


def test_the_end_is_told_from_a_message(pair: Pair) -> None:
    control.send(pair[0], {})
    pair[0].close()
    assert control.receive(pair[1]) == ({}, [])
    assert control.receive(pair[1]) is None


def test_what_is_too_long_is_not_sent(pair: Pair) -> None:
    with pytest.raises(control.MessageError, match=r"over the limit of 65536"):
        control.send(pair[0], {"text": "x" * control.MAX_MESSAGE})


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"3", b"\xff", b'"text"', b"[" * 60_000, b"x" * (control.MAX_MESSAGE + 1)]
)
def test_what_is_not_a_message_is_refused_and_its_descriptors_are_closed(pair: Pair, data: bytes) -> None:
    assert_closed_when_refused(pair, data, 2)


def test_more_descriptors_than_allowed_are_refused(pair: Pair) -> None:
    assert_closed_when_refused(pair, b"{}", control.MAX_DESCRIPTORS + 1)


def assert_closed_when_refused(pair: Pair, data: bytes, descriptors: int) -> None:
    """Send the writing end of a pipe so often: when all are closed, the reading end is at its end."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        socket.send_fds(pair[0], [data], [writing] * descriptors)
        os.close(writing)
        with pytest.raises(control.MessageError):
            control.receive(pair[1])
        assert os.read(reading, 1) == b""
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    "message",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"seq": "x", "op": "list"}',
        b'{"seq": 1, "op": "dance"}',
        b'{"seq": 1, "op": "start"}',
        b'{"seq": 1, "op": "start", "plan": {"id": 3}}',
        b'{"seq": 1, "op": "prepare", "preparation": {"ids": []}}',
        b'{"seq": 1, "op": "kill"}',
        b'{"a":' * 10_000,
        b"x" * (control.MAX_MESSAGE + 1),
    ],
)
def test_the_zygote_survives_bad_requests(machine: Machine, message: bytes) -> None:
    """It may be asked by this user's processes only, and still does not trust what they say."""
    connection = machine.runtime._keeper._client._connection  # type: ignore[union-attr]
    socket.send_fds(connection, [message], [0, 0, 0])
    with machine.sandbox() as sandbox:
        assert sandbox.sh("echo well") == "well"


def test_the_zygote_survives_what_a_sandbox_says(machine: Machine) -> None:
    """A daemon that was taken over has one socket to the zygote, and the zygote reads it when the daemon has ended."""
    lies = ["[" * 60_000, "{}", '{"init": 1}', '{"init": "x"}', '{"ready": 1}', '{"unshared": 1}', '{"failed": {}}']
    with machine.sandbox() as sandbox, machine.sandbox() as other:
        sandbox.ask(tell=[*lies, json.dumps({"failed": "x", "message": "y" * 50_000, "errno": [1]})] * 50)
        sandbox.ask(exit=0)
        assert eventually(lambda: machine.exits)
        ((id, reason),) = machine.exits
        machine.exits.clear()
        assert id == sandbox.id
        assert len(reason) < 10_000
        assert other.sh("echo well") == "well"


def test_only_this_user_may_ask_the_zygote(machine: Machine) -> None:
    assert (machine.state_dir / "control").stat().st_mode & 0o777 == 0o600


def test_a_second_server_on_the_control_socket_replaces_the_first(tmp_path: Path) -> None:
    """A new server must not be kept out by a connection that its predecessor left open."""
    with machines(tmp_path / "state", ephemeral=False) as made, made.sandbox() as sandbox:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as second:
            second.settimeout(10)
            second.connect(str(made.state_dir / "control"))
            second.send(json.dumps({"seq": 7, "op": "list"}).encode())
            answer = json.loads(second.recv(65_536))
        assert answer == {"seq": 7, "ok": True, "running": [sandbox.id], "ephemeral": False}
        assert eventually(lambda: made.exits)
