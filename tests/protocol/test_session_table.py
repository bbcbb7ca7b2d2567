"""The commands of a daemon by id, and the messages of one connection to them (wire protocol, sections 3.2 to 3.8)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_aio.protocol.frames import Execute
from sandbox_aio.protocol.session import CommandSession, InputCloseRequested, KillRequested, ResizeRequested
from sandbox_aio.protocol.session_table import OPENING_SECONDS, SessionConnection, SessionTable
from sandbox_aio.protocol.states import AttachmentState, SessionState

HUGE = 1 << 30


def connect(table: SessionTable, *messages: dict[str, Any], now: float = 0.0) -> SessionConnection:
    """Return a connection that has received these messages."""
    connection = SessionConnection(table, fallback_id="made-up", now=now)
    for message in messages:
        connection.receive_message(json.dumps(message).encode(), now)
    return connection


def execute(command_id: str | None = "c", **members: Any) -> dict[str, Any]:
    """Return the message that starts a command."""
    message = {"type": "execute", "command": "true", "command_id": command_id, **members}
    return {name: value for name, value in message.items() if value is not None}


def sent(connection: SessionConnection, now: float = 0.0) -> list[dict[str, Any]]:
    """Return all that a connection has to say now."""
    return [json.loads(message) for message in connection.messages_to_send(HUGE, now)]


def start(connection: SessionConnection, pid: int = 7) -> CommandSession:
    """Start the process of a connection's command."""
    session = connection.session
    assert session is not None
    session.events()
    session.process_started(pid, 0.0)
    return session


def finish(session: CommandSession, code: int = 0, now: float = 1.0) -> None:
    """Let a command end."""
    session.process_exited(code, now)
    session.receive_output_eof("stdout", now)
    session.receive_output_eof("stderr", now)


def run(table: SessionTable, command_id: str, output: bytes = b"", now: float = 1.0, **members: Any) -> CommandSession:
    """Start a command, let it write and end, and leave."""
    connection = connect(table, execute(command_id, **members))
    session = start(connection)
    session.receive_output("stdout", output, now)
    finish(session, now=now)
    connection.receive_closed(now)
    return session


def started(command_id: str = "c") -> dict[str, Any]:
    return {"type": "started", "command_id": command_id, "pid": 7}


def failed(error_type: str, error: str) -> list[dict[str, Any]]:
    return [{"type": "error", "error_type": error_type, "error": error}]


# --- starting and attaching --------------------


def test_a_command_from_its_start_to_its_end() -> None:
    connection = connect(SessionTable(), execute())
    assert sent(connection) == []
    session = start(connection)
    assert sent(connection) == [started()]
    session.receive_output("stdout", "h\u00e9".encode(), 0.1)
    session.receive_output("stderr", b"\0", 0.1)
    assert sent(connection) == [
        {"type": "stdout", "data": "h\u00e9", "offset": 0},
        {"type": "stderr", "data": "\0", "offset": 0},
    ]
    session.receive_output("stdout", b"!", 0.2)
    finish(session, 3)
    assert not connection.is_finished
    assert sent(connection) == [
        {"type": "stdout", "data": "!", "offset": 3},
        {"type": "exit", "exit_code": 3},
    ]
    assert connection.is_finished
    assert sent(connection) == []


def test_the_exit_waits_until_all_output_is_taken() -> None:
    connection = connect(SessionTable(), execute())
    session = start(connection)
    session.receive_output("stdout", b"x" * 200_000, 0.1)
    finish(session)

    types = []
    while not connection.is_finished:
        types.append([json.loads(message)["type"] for message in connection.messages_to_send(1, 1.0)])
    assert types == [["started", "stdout"], ["stdout"], ["stdout"], ["stdout", "exit"]]


def test_a_second_execute_with_the_same_id_attaches_and_replays() -> None:
    table = SessionTable()
    first = connect(table, execute(command="one"))
    session = start(first)
    session.receive_output("stdout", b"abc", 0.1)
    second = connect(table, execute(command="two", close_stdin=True, run_config={"user": "x"}, env={"A": "b"}))

    assert second.session is session
    assert session.events() == []
    assert sent(second) == [started(), {"type": "stdout", "data": "abc", "offset": 0}]
    assert len(table) == 1


def test_an_execute_without_an_id_gets_one() -> None:
    connection = connect(SessionTable(), execute(None))
    start(connection)

    assert sent(connection) == [started("made-up")]


def test_reconnecting_replays_from_the_offsets() -> None:
    table = SessionTable()
    session = start(connect(table, execute()))
    session.receive_output("stdout", b"0123456789", 0.1)
    session.receive_output("stderr", b"abc", 0.1)
    again = connect(table, {"type": "reconnect", "command_id": "c", "stdout_offset": 8, "stderr_offset": 3})

    assert sent(again) == [started(), {"type": "stdout", "data": "89", "offset": 8}]


def test_a_finished_command_replays_its_output_and_its_end_again_and_again() -> None:
    table = SessionTable()
    run(table, "c", b"out")
    for message in ({"type": "reconnect", "command_id": "c", "stdout_offset": 1, "stderr_offset": 0}, execute()):
        connection = connect(table, message, now=5.0)
        data = {"type": "stdout", "data": "ut", "offset": 1}
        if message["type"] == "execute":
            data = {"type": "stdout", "data": "out", "offset": 0}
        assert sent(connection) == [started(), data, {"type": "exit", "exit_code": 0}]


def test_a_timeout_is_repeated_to_those_who_come_later() -> None:
    table = SessionTable()
    connection = connect(table, execute(timeout_seconds=5))
    session = start(connection)
    session.receive_timeout(5.0)
    finish(session, 137, 5.1)
    again = connect(table, {"type": "reconnect", "command_id": "c", "stdout_offset": 0, "stderr_offset": 0})

    for reader in (connection, again):
        assert [message.get("error_type") for message in sent(reader)] == [None, "CommandTimeout"]


def test_a_command_that_could_not_start_has_an_error_and_no_start() -> None:
    table = SessionTable()
    connection = connect(table, execute())
    assert connection.session is not None
    connection.session.spawn_failed("no such shell", 0.1)

    assert sent(connection) == failed("CommandError", "no such shell")
    assert sent(connect(table, execute())) == failed("CommandError", "no such shell")


# --- refusals --------------------


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"command": None}, "a command is needed, unless pty is true"),
        ({"timeout_seconds": -1}, "timeout_seconds must not be negative, and is -1"),
        (
            {"run_config": {"user": "x"}, "env": {"A": "b"}},
            "run_config cannot be given together with env or cwd: put them into run_config as env_vars and work_dir",
        ),
        (
            {"run_config": {"user": "x"}, "cwd": "/"},
            "run_config cannot be given together with env or cwd: put them into run_config as env_vars and work_dir",
        ),
        ({"command_id": ""}, "command_id must not be empty"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(members: dict[str, Any], reason: str) -> None:
    table = SessionTable()
    connection = connect(table, execute(**{"command_id": "c", **members}))

    assert sent(connection) == failed("CommandError", reason)
    assert connection.is_finished
    assert len(table) == 0


def test_an_interactive_shell_needs_no_command() -> None:
    assert connect(SessionTable(), execute(command=None, pty=True)).state is AttachmentState.ATTACHED


def test_more_commands_than_may_run_are_refused() -> None:
    table = SessionTable(max_running=1)
    session = start(connect(table, execute("a")))
    assert connect(table, execute("a")).session is session
    refused = connect(table, execute("b"))
    assert sent(refused) == failed("CommandError", "1 commands are running, and more are not allowed")
    finish(session)
    assert connect(table, execute("b")).session is not None


def test_an_unknown_command_is_not_found() -> None:
    connection = connect(SessionTable(), {"type": "reconnect", "command_id": "x"})
    assert sent(connection) == failed("CommandNotFound", "there is no command x")


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"[]", b'{"type":"execute","command":3}'])
def test_garbage_is_refused_before_anything_is_attached(payload: bytes) -> None:
    connection = SessionConnection(SessionTable(), fallback_id="x", now=0.0)
    connection.receive_message(payload, 0.0)

    [message] = sent(connection)
    assert message["error_type"] == "CommandError"
    connection.receive_message(json.dumps(execute()).encode(), 0.0)
    assert connection.session is None


def test_silence_is_refused_after_a_while() -> None:
    connection = connect(SessionTable(), now=5.0)
    assert connection.deadline() == 5.0 + OPENING_SECONDS
    connection.receive_timeout(124.9)
    assert sent(connection) == []
    connection.receive_timeout(125.0)
    assert sent(connection) == failed("CommandError", "neither execute nor reconnect came within 120 seconds")
    assert connection.deadline() is None
    connection.receive_timeout(126.0)


# --- control --------------------


def test_control_messages_reach_the_command() -> None:
    connection = connect(SessionTable(), execute(pty=True))
    session = start(connection)
    for message in (
        {"type": "input", "data": "hi"},
        {"type": "resize", "cols": 1, "rows": 2},
        {"type": "kill"},
        {"type": "close_stdin"},
        {"type": "reconnect", "command_id": "other"},
        {"type": "ssh_agent_close", "channel_id": 1},
        {"type": "input", "data": 5},
    ):
        connection.receive_message(json.dumps(message).encode(), 0.5)

    assert bytes(session.input_pending) == b"hi"
    assert session.events() == [ResizeRequested(cols=1, rows=2), KillRequested()]


def test_input_before_the_start_is_ignored_and_an_early_close_is_remembered() -> None:
    connection = connect(SessionTable(), {"type": "input", "data": "x"}, {"type": "close_stdin"}, execute())
    session = connection.session

    assert session is not None
    assert session.execute.close_stdin
    assert not session.input_pending


def test_an_early_close_means_nothing_to_a_terminal() -> None:
    connection = connect(SessionTable(), {"type": "close_stdin"}, execute(pty=True))

    assert connection.session is not None
    assert not connection.session.execute.close_stdin


def test_an_early_close_is_applied_when_attaching() -> None:
    table = SessionTable()
    session = start(connect(table, execute()))
    connect(table, {"type": "close_stdin"}, {"type": "reconnect", "command_id": "c"})

    assert session.events() == [InputCloseRequested()]


def test_a_connection_is_not_read_while_the_input_is_full() -> None:
    connection = connect(SessionTable())
    assert connection.wants_input
    connection.receive_message(json.dumps(execute()).encode(), 0.0)
    start(connection)
    connection.receive_message(json.dumps({"type": "input", "data": "x" * (1 << 20)}).encode(), 0.0)

    assert not connection.wants_input


def test_a_connection_that_is_gone_detaches_once_and_controls_nothing() -> None:
    connection = connect(SessionTable(), execute(kill_on_disconnect=True))
    session = start(connection)
    connection.receive_message(b'{"type":"kill"}', 0.0)
    connection.receive_closed(1.0)
    connection.receive_closed(1.0)
    connection.receive_message(b'{"type":"kill"}', 2.0)

    assert session.events() == [KillRequested(), KillRequested()]
    assert connection.messages_to_send(HUGE, 2.0) == []


def test_detaching_does_not_kill_or_close_anything() -> None:
    connection = connect(SessionTable(), execute())
    session = start(connection)
    connection.receive_closed(1.0)

    assert session.events() == []


# --- expiry --------------------


def test_a_finished_command_expires_after_its_time_to_live() -> None:
    table = SessionTable()
    assert table.deadline() is None
    session = run(table, "c", now=100.0, ttl_seconds=50)
    assert table.deadline() == 150.0
    table.receive_timeout(149.9)
    assert table.find("c") is session
    table.receive_timeout(150.0)

    assert table.find("c") is None
    assert session.state is SessionState.EXPIRED
    [message] = sent(connect(table, {"type": "reconnect", "command_id": "c"}))
    assert message["error_type"] == "SessionExpired"
    assert "c" in message["error"]


def test_an_expired_id_can_be_used_again() -> None:
    table = SessionTable()
    table.forget(run(table, "c"))
    table.forget(run(table, "c"))
    assert table.missing("c").error_type == "SessionExpired"
    connect(table, execute("c"))

    assert table.missing("c").error_type == "CommandNotFound"
    assert len(table) == 1


def test_a_command_without_an_end_of_life_is_kept() -> None:
    table = SessionTable()
    run(table, "c", ttl_seconds=-1)

    assert table.deadline() is None
    assert len(table) == 1


def test_a_running_command_does_not_expire() -> None:
    table = SessionTable()
    session = start(connect(table, execute(ttl_seconds=1)))
    table.receive_timeout(1e9)
    table.forget(session)

    assert len(table) == 1


def test_the_oldest_finished_commands_make_room() -> None:
    table = SessionTable(max_finished=3)
    for index in range(20):
        run(table, str(index), ttl_seconds=100)

    assert len(table) == 3
    assert table.find("17") is not None
    assert table.missing("16").error_type == "SessionExpired"
    assert table.deadline() == 101.0


def test_the_output_of_all_finished_commands_is_bounded_but_the_last_is_kept() -> None:
    table = SessionTable(max_finished_bytes=250_000)
    for index in range(5):
        run(table, str(index), b"x" * 100_000)
    assert len(table) == 2
    run(table, "large", b"x" * 300_000)
    assert len(table) == 1
    assert table.find("large") is not None


def test_tombstones_are_bounded() -> None:
    table = SessionTable(max_tombstones=2)
    for index in range(4):
        table.forget(run(table, str(index)))

    assert [table.missing(str(index)).error_type for index in range(4)] == ["CommandNotFound"] * 2 + [
        "SessionExpired"
    ] * 2


def test_a_reader_that_is_attached_when_the_command_expires_gets_it_all() -> None:
    table = SessionTable()
    connection = connect(table, execute())
    session = start(connection)
    session.receive_output("stdout", b"abc", 0.5)
    finish(session)
    table.forget(session)

    assert [message["type"] for message in sent(connection)] == ["started", "stdout", "exit"]


def test_starting_directly_gives_the_command_of_the_id() -> None:
    table = SessionTable()
    session = table.start(Execute(command="true", command_id=None), fallback_id="f", now=0.0)

    assert table.find("f") is session
    assert table.start(Execute(command="false", command_id="f"), fallback_id="", now=0.0) is session
