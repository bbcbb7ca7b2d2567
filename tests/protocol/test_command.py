"""`protocol/command.py`, with literal times: wire protocol, sections 3.2 to 3.12."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandbox_aio.errors import (
    CommandTimeoutError,
    LocalProtocolError,
    RemoteProtocolError,
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
    SandboxOperationError,
)
from sandbox_aio.models import OutputGap
from sandbox_aio.protocol.command import ClientCommand
from sandbox_aio.protocol.events import CommandExited, CommandFailed, CommandStarted
from sandbox_aio.protocol.frames import (
    UNKNOWN_OFFSET,
    CloseStdin,
    ErrorReply,
    Execute,
    Exit,
    Input,
    Kill,
    Reconnect,
    Resize,
)
from sandbox_aio.protocol.states import CommandState, InputState
from sandbox_aio.protocol.websocket import WebSocketLimits
from tests.protocol.conversation import ENDPOINT, EXECUTE, RECONNECT, STARTED, Conversation, out
from tests.protocol.wire import CLOSE, PING, close_payload, sent

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_aio.errors import SandboxClientError

# --- a command that goes well ----------------------------------------------------------------------------------------


def test_a_command_runs_and_exits() -> None:
    conversation = Conversation()
    command = conversation.command
    assert command.wants_connection
    assert conversation.open() == [EXECUTE]
    assert not command.attached
    conversation.say(STARTED, out("héllo", 0), Exit(exit_code=3), close=1000)
    assert command.events() == [CommandStarted(command_id="c", pid=7), out("héllo", 0), CommandExited(exit_code=3)]
    assert command.state is CommandState.EXITED
    assert (command.pid, command.offset("stdout"), command.offset("stderr")) == (7, 6, 0)
    assert command.wants_close
    assert command.deadline() is None


def test_an_exit_is_answered_by_a_close_without_waiting_for_one() -> None:
    conversation = Conversation().start()
    assert conversation.daemon is not None
    conversation.daemon.send_text(b'{"type":"exit","exit_code":0}')
    conversation.command.receive_bytes(b"".join(conversation.daemon.bytes_to_send()), 1.0)
    assert sent(conversation.command) == [(CLOSE, close_payload(1000))]
    assert conversation.command.wants_close


def test_nothing_is_said_or_done_after_the_end() -> None:
    conversation = Conversation().start()
    command = conversation.command
    conversation.say(Exit(exit_code=0))
    command.events()
    assert conversation.daemon is not None
    conversation.daemon.send_text(b'{"type":"stdout","data":"late","offset":0}')
    command.receive_bytes(b"".join(conversation.daemon.bytes_to_send()), 1.0)
    command.receive_eof(1.0)
    command.receive_timeout(1e6)
    command.connection_failed(SandboxConnectionError("late"), 1.0)
    assert command.events() == []
    intents: dict[str, Callable[[], None]] = {
        "kill it": lambda: command.kill(1.0),
        "send input": lambda: command.send_input("x"),
        "close its input": command.close_input,
        "resize its terminal": lambda: command.resize(80, 24),
    }
    for what, intent in intents.items():
        with pytest.raises(LocalProtocolError, match=rf"is over \(exited\): it is too late to {what}"):
            intent()
    with pytest.raises(LocalProtocolError, match="CommandState EXITED does not allow RELEASE"):
        command.release(1.0)
    assert command.state is CommandState.EXITED


def test_attaching_sends_no_execute_and_begins_at_the_given_offsets() -> None:
    conversation = Conversation(RECONNECT)
    assert conversation.open() == [RECONNECT]
    assert conversation.command.attached
    conversation.say(STARTED, out("xy", 5), Exit(exit_code=0))
    assert conversation.command.events() == [out("xy", 5), CommandExited(exit_code=0)]
    assert conversation.command.pid == 7


def test_output_is_proof_enough_that_an_attachment_succeeded() -> None:
    conversation = Conversation(RECONNECT)
    conversation.open()
    conversation.say(out("old", 0), out("xy", 5), out("z", UNKNOWN_OFFSET))
    assert conversation.command.events() == [out("xy", 5), out("z", 7)]
    assert conversation.command.state is CommandState.RUNNING


def test_a_gap_is_said_and_counted() -> None:
    conversation = Conversation().start()
    conversation.say(out("x", 0), out("y", 9))
    gap = OutputGap("stdout", "", 1, missing_bytes=8)
    assert conversation.command.events() == [out("x", 0), gap, out("y", 9)]
    assert (conversation.command.missing("stdout"), conversation.command.missing("stderr")) == (8, 0)


def test_unknown_types_and_a_second_started_are_ignored() -> None:
    conversation = Conversation().start()
    assert conversation.daemon is not None
    conversation.daemon.send_text(b'{"type":"news","x":1}')
    conversation.daemon.send_text(b'{"type":"started","command_id":"other"}')
    conversation.flow(1.0)
    assert conversation.command.events() == []
    assert (conversation.command.command_id, conversation.command.pid) == ("c", 7)


# --- many connections (sections 3.10 and 3.11; more in test_command_connections.py) -----------------------------------


def test_a_start_is_tried_again_five_times_with_the_same_id() -> None:
    conversation = Conversation()
    now = 0.0
    for delay in (0.5, 1.0, 2.0, 4.0, 8.0):
        assert conversation.open(now) == [EXECUTE]
        conversation.lose(now)
        assert conversation.command.state is CommandState.WAITING
        now += delay
        assert conversation.command.deadline() == now
        conversation.due(now)
        assert conversation.command.wants_connection
    conversation.open(now)
    conversation.lose(now)
    error = conversation.failure()
    assert type(error) is SandboxConnectionError
    assert "could not be started in 6 tries; the last failed: the connection was closed with code 1006" in str(error)
    assert error.__cause__ is not None


def test_chance_makes_the_delay_shorter() -> None:
    conversation = Conversation(chance=lambda: 0.5)
    conversation.command.connection_failed(SandboxConnectTimeoutError("no route"), 0.0)
    assert conversation.command.deadline() == pytest.approx(0.45)


def test_the_whole_start_takes_120_seconds_at_most() -> None:
    conversation = Conversation()
    conversation.refuse(503, "Retry-After: 100000")
    assert conversation.command.deadline() == 120.0
    (event,) = conversation.due(120.0)
    assert isinstance(event, CommandFailed)
    assert isinstance(event.error, SandboxConnectTimeoutError)
    assert str(event.error) == "the command did not start within 120 s"


def test_a_connection_that_is_not_established_in_30_seconds_is_tried_again() -> None:
    conversation = Conversation()
    assert conversation.command.deadline() == 30.0
    conversation.command.connection_made(29.0)
    conversation.due(30.0)
    assert conversation.command.state is CommandState.WAITING
    assert conversation.command.bytes_to_send() == []
    with pytest.raises(LocalProtocolError, match="a command that is waiting wants no connection"):
        conversation.command.connection_made(30.0)
    conversation.due(30.5)
    assert conversation.command.deadline() == 60.5


@pytest.mark.parametrize(
    ("status", "kind", "missing"),
    [
        (401, SandboxAuthenticationError, False),
        (404, ResourceNotFoundError, True),
        (302, SandboxConnectionError, False),
    ],
)
def test_other_refusals_are_final_and_a_404_is_told_apart(
    status: int, kind: type[SandboxClientError], missing: bool
) -> None:
    conversation = Conversation()
    conversation.refuse(status)
    assert isinstance(conversation.failure(), kind)
    assert conversation.command.websocket_missing is missing
    assert not conversation.command.may_run


@pytest.mark.parametrize("kind", [RemoteProtocolError, SandboxAuthenticationError])
def test_a_failure_to_connect_that_no_try_mends_is_final(kind: type[SandboxClientError]) -> None:
    conversation = Conversation()
    error = kind("no")
    conversation.command.connection_failed(error, 0.0)
    assert conversation.failure() is error


def test_output_gives_all_attempts_back() -> None:
    conversation = Conversation().start()
    conversation.lose_often(5, 0.0)
    conversation.command.connection_failed(SandboxConnectionError("one that nobody wanted"), 0.0)
    conversation.say(out("x", 0), close=1011)  # in one piece: the output counts all the same
    assert conversation.command.state is CommandState.DETACHED
    conversation.due(0.0)
    conversation.open()
    conversation.lose_often(4, 0.0)
    conversation.lose(0.0)
    assert "it may still run: reconnect('c') attaches to it again" in str(conversation.failure())


@pytest.mark.parametrize("timer_first", [True, False])
def test_thirty_seconds_of_attachment_give_all_attempts_back(timer_first: bool) -> None:
    conversation = Conversation(limits=WebSocketLimits()).start()
    conversation.lose_often(5, 100.0)
    assert conversation.command.deadline() == 138.0
    if timer_first:
        conversation.due(138.0)
        assert conversation.command.deadline() is None
    conversation.lose(138.0)
    assert conversation.command.state is CommandState.DETACHED
    assert conversation.command.deadline() == 138.0


def test_a_peer_that_answers_no_ping_is_lost_unless_nobody_reads() -> None:
    conversation = Conversation().start()
    command = conversation.command
    assert command.deadline() == 30.0
    command.receive_timeout(30.0)
    assert sent(command) == [(PING, b"")]
    command.pause_reading(40.0)
    assert command.deadline() is None
    command.resume_reading(1000.0)
    assert command.deadline() == 1050.0
    command.receive_timeout(1050.0)
    assert command.state is CommandState.DETACHED
    command.pause_reading(1050.0)
    command.resume_reading(1050.0)
    command.receive_bytes(b"late", 1050.0)
    command.receive_eof(1050.0)
    assert command.state is CommandState.DETACHED


@pytest.mark.parametrize(("opening", "state"), [(EXECUTE, CommandState.WAITING), (RECONNECT, CommandState.DETACHED)])
def test_an_upgrade_that_is_closed_in_the_same_breath_is_just_lost(
    opening: Execute | Reconnect, state: CommandState
) -> None:
    conversation = Conversation(opening)
    conversation.command.kill(0.0)
    daemon = conversation.accept(0.0)
    daemon.close(0.0, 1001)
    assert conversation.flow(0.0) == []
    assert conversation.command.state is state
    assert conversation.command.kill_pending


# --- kill (section 3.8) ----------------------------------------------------------------------------------------------


def test_a_kill_goes_out_at_once_and_the_exit_is_awaited_for_ten_seconds() -> None:
    conversation = Conversation(limits=WebSocketLimits()).start()
    command = conversation.command
    command.kill(100.0)
    assert conversation.sent() == [Kill()]
    assert (command.killed, command.kill_pending, command.wants_close) == (True, False, False)
    command.kill(105.0)
    assert conversation.sent() == []
    assert command.deadline() == 110.0
    (event,) = conversation.due(110.0)
    assert isinstance(event, CommandFailed)
    assert type(event.error) is SandboxConnectionError
    assert "its exit was not reported within 10 s" in str(event.error)


def test_the_exit_of_a_killed_command_is_an_exit() -> None:
    conversation = Conversation().start()
    conversation.command.kill(1.0)
    conversation.say(out("bye", 0), Exit(exit_code=137))
    assert conversation.command.events() == [out("bye", 0), CommandExited(exit_code=137)]


def test_a_kill_behind_input_is_sent_again_on_a_new_connection() -> None:
    conversation = Conversation(limits=WebSocketLimits()).start()
    command = conversation.command
    command.send_input("unread")
    command.kill(100.0)
    assert conversation.sent() == [Input(data="unread"), Kill()]
    assert command.deadline() == 101.0
    assert conversation.due(101.0) == []
    assert command.deadline() == 101.0
    assert conversation.due(101.0) == []
    assert conversation.open(101.0) == [Reconnect(command_id="c"), Kill()]
    assert command.deadline() == 110.0


def test_while_nobody_reads_the_time_for_an_exit_stands_still() -> None:
    execute = Execute(command="x", command_id="c", timeout_seconds=60)
    conversation = Conversation(execute, limits=WebSocketLimits()).start(now=5.0)
    command = conversation.command
    command.pause_reading(15.0)
    command.pause_reading(20.0)
    command.kill(500.0)
    assert command.deadline() is None
    command.receive_timeout(1000.0)
    assert command.events() == []
    command.resume_reading(1015.0)
    assert command.deadline() == 1025.0
    conversation.say(Exit(exit_code=137), now=1024.0)
    assert command.events() == [CommandExited(exit_code=137)]


def test_a_kill_before_started_is_sent_after_it() -> None:
    conversation = Conversation()
    conversation.command.kill(0.0)
    assert conversation.open() == [EXECUTE]
    assert conversation.say(STARTED) == [Kill()]


# --- input (section 3.6) ---------------------------------------------------------------------------------------------


def test_input_goes_out_in_order_and_what_is_kept_comes_first() -> None:
    conversation = Conversation(max_pending_input_bytes=4)
    command = conversation.command
    command.send_input("é")
    assert conversation.open() == [EXECUTE]
    command.send_input("ab")
    with pytest.raises(LocalProtocolError, match="4 bytes of input wait already; 1 more would be over the limit of 4"):
        command.send_input("x")
    assert conversation.say(STARTED) == [Input(data="é"), Input(data="ab")]
    command.send_input("as long as one likes")
    command.close_input()
    command.close_input()
    assert conversation.sent() == [Input(data="as long as one likes"), CloseStdin()]
    with pytest.raises(LocalProtocolError, match="InputState CLOSED does not allow WRITE"):
        command.send_input("x")
    assert command.input_state is InputState.CLOSED


def test_a_terminal_has_a_size_and_no_end_of_input() -> None:
    conversation = Conversation(Execute(command=None, command_id="c", pty=True)).start()
    command = conversation.command
    command.close_input()
    command.send_input("\x04")
    command.resize(80, 24)
    assert conversation.sent() == [Input(data="\x04"), Resize(cols=80, rows=24)]
    assert command.input_state is InputState.TERMINAL
    with pytest.raises(LocalProtocolError, match="without a terminal has no size"):
        Conversation().command.resize(80, 24)


@pytest.mark.parametrize(("terminal", "closed"), [(True, False), (False, True)])
def test_one_who_attaches_says_what_is_known_of_the_input(terminal: bool, closed: bool) -> None:
    command = Conversation(RECONNECT, terminal=terminal, input_closed=closed).command
    assert command.input_state is (InputState.TERMINAL if terminal else InputState.CLOSED)


# --- the ways to fail (sections 3.3, 3.4 and 3.9) --------------------------------------------------------------------


@pytest.mark.parametrize(("opening", "operation"), [(EXECUTE, "command"), (RECONNECT, "reconnect")])
def test_an_error_frame_is_the_end(opening: Execute | Reconnect, operation: str) -> None:
    conversation = Conversation(opening)
    conversation.open()
    conversation.say(ErrorReply(error="no bash", error_type="CommandError"))
    error = conversation.failure()
    assert isinstance(error, SandboxOperationError)
    assert (error.operation, str(error)) == (operation, "no bash [CommandError]")


def test_a_timeout_that_the_daemon_reports_bears_the_limit() -> None:
    conversation = Conversation(Execute(command="x", command_id="c", timeout_seconds=60)).start()
    conversation.say(ErrorReply(error="too long", error_type="CommandTimeout"))
    error = conversation.failure()
    assert isinstance(error, CommandTimeoutError)
    assert error.timeout == 60


def test_a_daemon_that_does_not_end_a_command_in_time_is_given_up_after_another_kill() -> None:
    execute = Execute(command="x", command_id="c", timeout_seconds=60)
    conversation = Conversation(execute, limits=WebSocketLimits()).start(now=5.0)
    assert conversation.command.deadline() == 95.0
    (event,) = conversation.due(95.0)
    assert isinstance(event, CommandFailed)
    assert isinstance(event.error, CommandTimeoutError)
    assert event.error.timeout == 60
    assert conversation.sent() == [Kill()]


def test_an_oversized_frame_is_an_error_after_one_try() -> None:
    conversation = Conversation(limits=WebSocketLimits(max_message_bytes=100)).start()
    conversation.say(out("x" * 200, 0))
    error = conversation.failure()
    assert type(error) is RemoteProtocolError
    assert str(error) == "the server broke the protocol: a message is over 100 bytes"


def test_what_is_not_http_is_asked_about() -> None:
    conversation = Conversation()
    conversation.command.connection_made(0.0)
    conversation.command.receive_bytes(b"SSH-2.0", 0.0)
    assert "is this the address of a sandbox service?" in str(conversation.failure())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"garbage", "not JSON"),
        (b'{"type":"exit","exit_code":0}', "it sent Exit before it said that the command started"),
        (b'{"type":"stdout","data":"x","offset":0}', "it sent OutputChunk before"),
    ],
)
def test_what_the_protocol_does_not_allow_is_the_end(message: bytes, reason: str) -> None:
    conversation = Conversation()
    conversation.open()
    assert conversation.daemon is not None
    conversation.daemon.send_text(message)
    conversation.command.receive_bytes(b"".join(conversation.daemon.bytes_to_send()), 1.0)
    error = conversation.failure()
    assert type(error) is RemoteProtocolError
    assert reason in str(error)
    assert sent(conversation.command) == [(CLOSE, close_payload(1002))]


# --- letting go ------------------------------------------------------------------------------------------------------


def test_release_says_goodbye_and_nothing_else() -> None:
    conversation = Conversation().start()
    conversation.command.release(1.0)
    assert sent(conversation.command) == [(CLOSE, close_payload(1000))]
    assert conversation.command.events() == []
    assert conversation.command.state is CommandState.RELEASED


def test_release_is_possible_before_anything_and_without_a_connection() -> None:
    for command in (ClientCommand(EXECUTE, ENDPOINT), Conversation().command):
        command.release(1.0)
        assert command.bytes_to_send() == []
        assert command.deadline() is None


def test_misuse_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="a client chooses the command's id"):
        ClientCommand(Execute(command="x", command_id=None), ENDPOINT)
    command = ClientCommand(EXECUTE, ENDPOINT)
    with pytest.raises(LocalProtocolError, match="a command that is new wants no connection"):
        command.connection_made(0.0)
    command.begin(0.0)
    with pytest.raises(LocalProtocolError, match="CommandState CONNECTING does not allow CONNECT"):
        command.begin(0.0)
    command.pause_reading(0.0)
    command.resume_reading(0.0)
    command.receive_bytes(b"too early", 0.0)
    command.receive_eof(0.0)
    command.receive_timeout(1.0)
    assert command.state is CommandState.CONNECTING
    assert command.events() == []


def test_a_message_that_the_server_finds_too_large_is_not_sent_again() -> None:
    conversation = Conversation()
    conversation.open()
    conversation.say(close=1009)
    error = conversation.failure()
    assert isinstance(error, SandboxOperationError)
    assert "write what is long to a file" in str(error)
