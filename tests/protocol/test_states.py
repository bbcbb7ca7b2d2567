"""`protocol/states.py`: the tables are whole, sound, and the only way to move."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol import states
from sandbox_aio.protocol.states import (
    ATTACHMENT_TRANSITIONS,
    COMMAND_TRANSITIONS,
    INPUT_TRANSITIONS,
    KILL_TRANSITIONS,
    SESSION_TRANSITIONS,
    TERMINAL_COMMAND_STATES,
    WEBSOCKET_TRANSITIONS,
    AttachmentInput,
    AttachmentState,
    CommandInput,
    CommandState,
    InputInput,
    InputState,
    KillInput,
    KillState,
    SessionInput,
    SessionState,
    WebSocketInput,
    WebSocketState,
    step,
)

if TYPE_CHECKING:
    import enum

AnyTable = Mapping[Any, Mapping[Any, Any]]


class Machine:
    """One table, with where it begins and where it may end."""

    def __init__(
        self, table: AnyTable, inputs: type[enum.Enum], starts: set[enum.Enum], finals: set[enum.Enum]
    ) -> None:
        self.table, self.inputs, self.starts, self.finals = table, inputs, starts, finals
        self.states: type[enum.Enum] = type(next(iter(starts)))
        self.id = self.states.__name__


MACHINES = [
    Machine(
        WEBSOCKET_TRANSITIONS,
        WebSocketInput,
        {WebSocketState.CONNECTING},
        {WebSocketState.CLOSED, WebSocketState.FAILED},
    ),
    Machine(COMMAND_TRANSITIONS, CommandInput, {CommandState.NEW}, set(TERMINAL_COMMAND_STATES)),
    Machine(KILL_TRANSITIONS, KillInput, {KillState.NONE}, set()),
    Machine(INPUT_TRANSITIONS, InputInput, {InputState.OPEN, InputState.TERMINAL}, set()),
    Machine(SESSION_TRANSITIONS, SessionInput, {SessionState.STARTING}, {SessionState.EXPIRED}),
    Machine(ATTACHMENT_TRANSITIONS, AttachmentInput, {AttachmentState.WAITING}, set()),
]

every_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.id)


def test_every_table_is_tested_here() -> None:
    tables = {name for name, value in inspect.getmembers(states) if name.endswith("_TRANSITIONS") and value}
    assert tables == {name for name in globals() if name.endswith("_TRANSITIONS")}
    assert len(tables) == len(MACHINES)


@every_machine
def test_every_state_has_a_row_and_can_be_reached(machine: Machine) -> None:
    assert set(machine.table) == set(machine.states)
    reached, frontier = set(machine.starts), list(machine.starts)
    while frontier:
        for follower in machine.table[frontier.pop()].values():
            if follower not in reached:
                reached.add(follower)
                frontier.append(follower)
    assert reached == set(machine.states)


@every_machine
def test_every_input_means_something(machine: Machine) -> None:
    assert {input for row in machine.table.values() for input in row} == set(machine.inputs)


@every_machine
def test_exactly_the_final_states_allow_nothing(machine: Machine) -> None:
    assert {state for state, row in machine.table.items() if not row} == machine.finals


@every_machine
def test_every_state_and_input_either_moves_or_says_why_not(machine: Machine) -> None:
    for state in machine.states:
        for input in machine.inputs:
            if input in machine.table[state]:
                assert step(machine.table, state, input) is machine.table[state][input]
                continue
            with pytest.raises(LocalProtocolError) as caught:
                step(machine.table, state, input)
            said = str(caught.value)
            assert f"{machine.id} {state.name} does not allow {input.name}" in said
            for legal in machine.table[state]:
                assert legal.name in said
            assert ("it is final" in said) == (state in machine.finals)
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__


@given(st.sampled_from(MACHINES), st.data())
def test_any_walk_stays_in_the_table_and_never_leaves_a_final_state(machine: Machine, draw: st.DataObject) -> None:
    state = draw.draw(st.sampled_from(sorted(machine.starts, key=lambda state: state.name)))
    for input in draw.draw(st.lists(st.sampled_from(list(machine.inputs)), max_size=20)):
        before = state
        try:
            state = step(machine.table, state, input)
        except LocalProtocolError:
            assert state is before
        assert not (before in machine.finals and state is not before)


def test_a_kill_that_was_sent_is_wanted_again_when_the_connection_is_lost() -> None:
    assert KILL_TRANSITIONS[KillState.SENT][KillInput.LOST] is KillState.WANTED
    assert all(KillState.NONE not in row.values() for state, row in KILL_TRANSITIONS.items() if state.name != "NONE")


def test_a_started_command_never_goes_back_to_being_started() -> None:
    begun = {CommandState.RUNNING, CommandState.DETACHED, CommandState.REATTACHING, CommandState.RESUMING}
    for state in begun:
        assert set(COMMAND_TRANSITIONS[state].values()) <= begun | TERMINAL_COMMAND_STATES
