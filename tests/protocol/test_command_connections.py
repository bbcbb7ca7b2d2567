"""`protocol/command.py` over many connections, with literal times: wire protocol, sections 3.2, 3.10 and 3.11."""

from __future__ import annotations

import pytest

from sandbox_aio.errors import ResourceNotFoundError, SandboxConnectTimeoutError
from sandbox_aio.protocol.events import CommandFailed
from sandbox_aio.protocol.frames import CloseStdin, Input, Kill, Reconnect
from sandbox_aio.protocol.states import CommandState
from sandbox_aio.protocol.websocket import WebSocketLimits
from tests.protocol.conversation import EXECUTE, STARTED, Conversation, out


def detached(now: float = 10.0) -> Conversation:
    """Return a started command that lost its connection."""
    conversation = Conversation().start()
    conversation.lose(now)
    assert conversation.command.state is CommandState.DETACHED
    return conversation


# --- the start, tried again (section 3.10) ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011])
def test_any_close_before_started_is_a_reason_to_try_again(code: int) -> None:
    conversation = Conversation()
    conversation.open()
    conversation.say(close=code)
    assert conversation.command.state is CommandState.WAITING
    conversation.due(0.5)
    assert conversation.open(0.5) == [EXECUTE]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_retry_after_is_obeyed(status: int) -> None:
    conversation = Conversation()
    conversation.refuse(status, "Retry-After: 2.5")
    assert conversation.command.deadline() == 2.5
    conversation.due(2.5)
    conversation.refuse(status, now=2.5)
    assert conversation.command.deadline() == 3.5


def test_a_daemon_that_never_says_started_is_given_up() -> None:
    conversation = Conversation(limits=WebSocketLimits())
    conversation.open()
    assert conversation.command.deadline() == 120.0
    (event,) = conversation.due(120.0)
    assert isinstance(event, CommandFailed)
    assert isinstance(event.error, SandboxConnectTimeoutError)


def test_after_started_the_time_for_starting_no_longer_counts() -> None:
    conversation = Conversation(limits=WebSocketLimits()).start(now=5.0)
    assert conversation.command.deadline() is None


def test_a_404_while_attaching_says_nothing_about_websockets() -> None:
    conversation = detached()
    conversation.due(10.0)
    conversation.refuse(404, now=10.0)
    assert isinstance(conversation.failure(), ResourceNotFoundError)
    assert not conversation.command.websocket_missing
    assert conversation.command.may_run


# --- attaching again (section 3.11) ----------------------------------------------------------------------------------


def test_the_first_loss_is_mended_at_once_and_the_next_with_growing_delays() -> None:
    conversation = Conversation().start()
    conversation.say(out("abc", 0))
    now = 10.0
    for delay in (0.0, 0.5, 1.0, 2.0, 4.0):
        conversation.lose(now)
        now += delay
        assert conversation.command.deadline() == now
        conversation.due(now)
        assert conversation.open(now) == [Reconnect(command_id="c", stdout_offset=3)]
        conversation.say(STARTED, now=now)  # proves nothing about the next connection
    conversation.command.events()
    conversation.lose(now)
    error = conversation.failure()
    assert "could not be attached to in 5 tries" in str(error)
    assert "it may still run: reconnect('c') attaches to it again" in str(error)


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011])
def test_however_the_connection_ends_it_is_made_anew_from_the_offsets(code: int) -> None:
    conversation = Conversation().start()
    conversation.say(out("é", 0), close=None if code == 1006 else code)
    if code == 1006:
        conversation.lose(0.0)
    conversation.command.receive_timeout(0.0)
    assert conversation.open() == [Reconnect(command_id="c", stdout_offset=2)]
    conversation.say(out("éa", 0), out("b", 3))
    assert conversation.command.events() == [out("é", 0), out("a", 2), out("b", 3)]


def test_output_that_was_seen_before_gives_nothing_back() -> None:
    conversation = Conversation().start()
    conversation.say(out("x", 0))
    conversation.lose_often(5, 0.0)
    conversation.say(STARTED, out("x", 0), close=1011)
    conversation.command.events()
    assert conversation.command.state is CommandState.FAILED


def test_twenty_nine_seconds_do_not() -> None:
    conversation = Conversation(limits=WebSocketLimits()).start()
    conversation.lose_often(5, 100.0)
    conversation.lose(137.9)
    assert conversation.command.state is CommandState.FAILED


def test_a_refusal_while_attaching_is_tried_again_after_what_it_asks() -> None:
    conversation = detached()
    conversation.due(10.0)
    conversation.refuse(503, "Retry-After: 3", now=10.0)
    assert conversation.command.deadline() == 13.0


def test_a_start_that_is_closed_in_the_same_breath_keeps_the_kill() -> None:
    conversation = Conversation()
    conversation.open()
    conversation.command.kill(0.0)
    assert conversation.say(STARTED, close=1001) == []
    assert conversation.command.kill_pending
    conversation.due(0.0)
    assert conversation.open() == [Reconnect(command_id="c"), Kill()]


# --- wishes that outlive a connection (sections 3.6 and 3.8) ----------------------------------------------------------


def test_a_kill_survives_every_loss_and_is_sent_anew() -> None:
    conversation = Conversation().start()
    command = conversation.command
    command.kill(1.0)
    conversation.sent()
    for now in (2.0, 3.0):
        conversation.lose(now)
        assert command.kill_pending
        command.receive_timeout(now + 0.5)
        assert conversation.open(now + 0.5) == [Reconnect(command_id="c"), Kill()]
    assert not command.kill_pending


def test_the_end_of_input_is_said_again_on_every_connection_and_input_never() -> None:
    conversation = Conversation().start()
    conversation.command.send_input("once")
    conversation.command.close_input()
    conversation.lose(1.0)
    conversation.due(1.0)
    assert conversation.open(1.0) == [Reconnect(command_id="c"), CloseStdin()]


def test_input_and_its_end_are_kept_while_detached() -> None:
    conversation = Conversation().start()
    conversation.lose(1.0)
    conversation.command.send_input("x")
    conversation.command.close_input()
    conversation.due(1.0)
    assert conversation.open(1.0) == [Reconnect(command_id="c"), Input(data="x"), CloseStdin()]
