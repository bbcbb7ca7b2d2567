"""`protocol/intents.py`: what the caller wants goes out once, in order, and a kill and an end of input again."""

from __future__ import annotations

import pytest

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.frames import CloseStdin, Input, Kill, Resize
from sandbox_aio.protocol.intents import Intents
from sandbox_aio.protocol.states import InputState, KillState


def intents(*, terminal: bool = False, input_closed: bool = False, limit: int = 10) -> Intents:
    return Intents(terminal=terminal, input_closed=input_closed, max_pending_input_bytes=limit)


def test_everything_goes_out_once_input_first_and_the_kill_last() -> None:
    wishes = intents()
    wishes.kill()
    wishes.kill()
    wishes.send_input("a", keep=True)
    wishes.send_input("b", keep=True)
    wishes.close_input()
    assert wishes.frames() == [Input(data="a"), Input(data="b"), CloseStdin(), Kill()]
    assert wishes.frames() == []
    assert wishes.kill_state is KillState.SENT


def test_a_lost_connection_makes_a_kill_and_an_end_of_input_due_again() -> None:
    wishes = intents()
    wishes.send_input("a", keep=False)
    wishes.close_input()
    wishes.kill()
    wishes.frames()
    for _ in range(2):
        wishes.connection_lost()
        assert wishes.frames() == [CloseStdin(), Kill()]


def test_without_wishes_a_lost_connection_makes_nothing_due() -> None:
    wishes = intents()
    wishes.connection_lost()
    assert wishes.frames() == []
    assert (wishes.kill_state, wishes.input_state) == (KillState.NONE, InputState.OPEN)


def test_the_bound_counts_bytes_that_are_kept() -> None:
    wishes = intents(limit=4)
    wishes.send_input("é", keep=True)
    wishes.send_input("é", keep=True)
    with pytest.raises(LocalProtocolError, match="4 bytes of input wait already; 2 more would be over the limit of 4"):
        wishes.send_input("é", keep=True)
    wishes.send_input("x" * 100, keep=False)
    assert wishes.frames() == [Input(data="é"), Input(data="é"), Input(data="x" * 100)]
    wishes.send_input("abcd", keep=True)
    wishes.clear()
    assert wishes.frames() == []
    wishes.send_input("\ud800", keep=True)


def test_closed_input_takes_nothing_more() -> None:
    wishes = intents(input_closed=True)
    with pytest.raises(LocalProtocolError, match="InputState CLOSED does not allow WRITE"):
        wishes.send_input("x", keep=False)
    wishes.close_input()
    assert wishes.frames() == []


def test_a_terminal_keeps_its_last_size_and_is_never_closed() -> None:
    wishes = intents(terminal=True)
    wishes.close_input()
    wishes.resize(80, 24)
    wishes.resize(132, 50)
    wishes.send_input("x", keep=True)
    assert wishes.frames() == [Input(data="x"), Resize(cols=132, rows=50)]
    wishes.connection_lost()
    assert wishes.frames() == []
    with pytest.raises(LocalProtocolError, match="without a terminal has no size"):
        intents().resize(80, 24)
