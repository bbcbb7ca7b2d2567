"""One command as the daemon sees it: what clients are told, when, and what is asked of the driver."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.frames import ErrorReply, Execute, Exit
from sandbox_aio.protocol.session import (
    DRAIN_SECONDS,
    FRAME_BYTES,
    INPUT_BYTES,
    KILL_SECONDS,
    STALL_SECONDS,
    Attachment,
    CommandSession,
    InputCloseRequested,
    KillRequested,
    ResizeRequested,
    SpawnRequested,
)
from sandbox_aio.protocol.states import SessionState


def make(*, started: bool = True, capacity: int = 1 << 20, **members: Any) -> CommandSession:
    """Return a session; started at 0, with its first event taken, unless told otherwise."""
    execute = Execute(**{"command": "true", "command_id": "c", **members})
    session = CommandSession(execute, command_id="c", now=0.0, capacity=capacity)
    if started:
        assert session.events() == [SpawnRequested(execute=execute)]
        session.process_started(7, 0.0)
    return session


def text(attachment: Attachment, now: float = 0.0) -> bytes:
    """Take everything there is."""
    return b"".join(data for _, _, data in attachment.take(1 << 30, now))


def finish(session: CommandSession, code: int = 0, now: float = 1.0) -> None:
    """Let the process exit and its output end."""
    session.process_exited(code, now)
    session.receive_output_eof("stdout", now)
    session.receive_output_eof("stderr", now)


# --- output --------------------


def test_output_reaches_a_reader_with_its_offsets() -> None:
    session = make()
    reader = session.attach(0, 0, 0.0)
    session.receive_output("stdout", b"one", 0.1)
    session.receive_output("stderr", b"two", 0.1)
    session.receive_output("stdout", b"three", 0.1)

    assert reader.take(1 << 20, 0.2) == [("stdout", 0, b"onethree"), ("stderr", 0, b"two")]
    assert reader.take(1 << 20, 0.2) == []


def test_a_second_reader_gets_a_replay_from_its_own_offsets() -> None:
    session = make()
    session.receive_output("stdout", b"0123456789", 0.1)
    first, second = session.attach(0, 0, 0.2), session.attach(4, 0, 0.2)

    assert first.take(1 << 20, 0.2) == [("stdout", 0, b"0123456789")]
    assert second.take(1 << 20, 0.2) == [("stdout", 4, b"456789")]


def test_offsets_beyond_the_end_or_below_zero_are_clamped() -> None:
    session = make()
    session.receive_output("stdout", b"abc", 0.1)
    late, early = session.attach(99, 5, 0.2), session.attach(-3, 0, 0.2)
    session.receive_output("stdout", b"def", 0.3)

    assert late.take(1 << 20, 0.4) == [("stdout", 3, b"def")]
    assert early.take(1 << 20, 0.4) == [("stdout", 0, b"abcdef")]


def test_a_character_that_is_cut_by_two_reads_stays_whole_and_invalid_bytes_are_replaced_once() -> None:
    session = make()
    reader = session.attach(0, 0, 0.0)
    euro = "\u20ac".encode()
    session.receive_output("stdout", b"a" + euro[:2], 0.1)
    assert text(reader) == b"a"
    session.receive_output("stdout", euro[2:] + b"\xff" + euro[:1], 0.1)
    assert text(reader) == euro + "\ufffd".encode()
    finish(session)

    assert reader.take(100, 1.0) == [("stdout", 7, "\ufffd".encode())]


def test_a_piece_is_at_most_one_frame_and_a_turn_about_its_budget() -> None:
    session = make()
    reader = session.attach(0, 0, 0.0)
    session.receive_output("stdout", b"x" * 250_000, 0.1)

    pieces = reader.take(100_000, 0.2)

    assert [len(data) for _, _, data in pieces] == [FRAME_BYTES, FRAME_BYTES]
    assert reader.has_output


def test_output_after_the_end_is_dropped() -> None:
    session = make()
    finish(session)
    session.receive_output("stdout", b"late", 2.0)
    session.receive_output_eof("stdout", 2.0)

    assert text(session.attach(0, 0, 3.0)) == b""
    assert session.retained_bytes == 0


# --- back-pressure --------------------


def test_with_nobody_attached_the_oldest_output_is_overwritten_and_the_process_never_waits() -> None:
    session = make(capacity=1000)
    for index in range(100):
        assert session.wants_output("stdout")
        session.receive_output("stdout", bytes([65 + index % 26]) * 70_000, 0.1)

    reader = session.attach(0, 0, 0.2)
    [(_, offset, _), *_] = reader.take(1 << 30, 0.2)
    assert offset == session.buffers["stdout"].start > 0


def test_the_process_waits_for_an_attached_reader_before_anything_is_overwritten() -> None:
    session = make(capacity=4096)
    reader = session.attach(0, 0, 0.0)
    log = b""
    while session.wants_output("stdout"):
        chunk = b"\xff" * session.read_bytes  # the worst case: three bytes for each
        log += "\ufffd".encode() * len(chunk)
        session.receive_output("stdout", chunk, 0.1)
    assert session.wants_output("stderr")

    assert text(reader) == log
    assert session.wants_output("stdout")


def test_the_process_follows_the_fastest_reader_and_the_slow_one_finds_a_gap() -> None:
    session = make(capacity=4096)
    slow, fast = session.attach(0, 0, 0.0), session.attach(0, 0, 0.0)
    for _ in range(100):
        session.receive_output("stdout", b"x" * session.read_bytes, 1.0)
        fast.take(1 << 20, 1.0)
        assert session.wants_output("stdout")

    [(_, offset, _), *_] = slow.take(1 << 20, 2.0)
    assert offset > 0


def test_a_reader_that_takes_nothing_for_ten_seconds_holds_nothing_back_but_stays_attached() -> None:
    session = make(capacity=4096, idle_timeout_seconds=5, timeout_seconds=0)
    reader = session.attach(0, 0, 0.0)
    while session.wants_output("stdout"):
        session.receive_output("stdout", b"x" * session.read_bytes, 100.0)
    assert session.deadline() == 100.0 + STALL_SECONDS

    session.receive_timeout(109.9)
    assert not session.wants_output("stdout")
    session.receive_timeout(110.0)
    assert session.wants_output("stdout")
    assert session.deadline() is None  # attached: not idle

    session.receive_output("stdout", b"y", 111.0)
    reader.take(1, 112.0)
    assert reader.holding


def test_taking_a_part_begins_the_ten_seconds_anew() -> None:
    session = make(capacity=1 << 20)
    reader = session.attach(0, 0, 0.0)
    while session.wants_output("stdout"):
        session.receive_output("stdout", b"x" * 100_000, 0.0)
    reader.take(1, 8.0)

    session.receive_timeout(12.0)
    assert reader.holding
    session.receive_timeout(18.0)
    assert not reader.holding


def test_a_reader_that_goes_lets_the_process_go_on() -> None:
    session = make(capacity=4096)
    reader = session.attach(0, 0, 0.0)
    while session.wants_output("stdout"):
        session.receive_output("stdout", b"x" * session.read_bytes, 0.0)
    reader.detach(1.0)
    reader.detach(1.0)

    assert session.wants_output("stdout")


# --- the end --------------------


def test_the_exit_follows_every_byte() -> None:
    session = make()
    reader = session.attach(0, 0, 0.0)
    session.process_exited(3, 1.0)
    session.receive_output("stdout", b"last words", 1.1)
    assert session.state is SessionState.DRAINING
    session.receive_output_eof("stderr", 1.2)
    assert session.outcome is None
    session.receive_output_eof("stdout", 1.2)

    assert session.outcome == Exit(exit_code=3)
    assert text(reader) == b"last words"


def test_background_children_that_hold_the_output_open_delay_the_exit_by_a_second() -> None:
    session = make()
    session.process_exited(0, 5.0)

    assert session.deadline() == 5.0 + DRAIN_SECONDS
    session.receive_timeout(5.9)
    assert session.outcome is None
    session.receive_timeout(6.0)
    assert session.outcome == Exit(exit_code=0)
    assert session.deadline() is None
    session.receive_timeout(99.0)


def test_what_is_in_the_pipe_at_the_exit_is_said_before_it_however_slow_the_readers_are() -> None:
    session = make(capacity=4096, idle_timeout_seconds=-1, timeout_seconds=0)
    reader = session.attach(0, 0, 0.0)
    while session.wants_output("stdout"):
        session.receive_output("stdout", b"x" * 500, 0.0)
    held = session.buffers["stdout"].end
    session.process_exited(0, 5.0, {"stdout": 600, "stderr": 10})
    session.receive_output_eof("stderr", 5.0)
    session.receive_timeout(8.0)
    assert session.outcome is None
    assert session.deadline() == STALL_SECONDS  # the reader's
    reader.take(1 << 20, 9.0)
    session.receive_output("stdout", b"y" * 599, 9.0)
    assert session.outcome is None
    session.receive_output("stdout", b"z", 9.0)
    assert session.deadline() == 5.0 + DRAIN_SECONDS  # long ago: at once
    session.receive_timeout(9.0)
    assert session.outcome == Exit(exit_code=0)
    assert text(reader) == b"y" * 599 + b"z"
    assert session.buffers["stdout"].end == held + 600


def test_a_terminal_has_one_stream() -> None:
    session = make(pty=True)
    session.process_exited(0, 1.0)
    session.receive_output_eof("stdout", 1.0)

    assert session.outcome == Exit(exit_code=0)


def test_a_failed_start_is_an_error() -> None:
    session = make(started=False)
    session.spawn_failed("no such shell", 0.1)

    assert session.outcome == ErrorReply(error="no such shell", error_type="CommandError")
    assert session.is_over


def test_what_cannot_be_raises() -> None:
    session = make()
    with pytest.raises(LocalProtocolError, match="RUNNING does not allow STARTED"):
        session.process_started(8, 0.0)
    with pytest.raises(LocalProtocolError):
        session.expire()
    assert session.state is SessionState.RUNNING
    assert session.pid == 7


def test_the_owner_is_told_once_that_it_is_over() -> None:
    told: list[tuple[CommandSession, float]] = []
    execute = Execute(command="true", command_id="c")
    session = CommandSession(execute, command_id="c", now=0.0, on_over=lambda *args: told.append(args))
    session.process_started(1, 0.0)
    finish(session, now=2.0)

    assert told == [(session, 2.0)]
    session.expire()
    assert session.state is SessionState.EXPIRED


# --- time --------------------


def test_a_command_that_runs_out_of_time_is_killed_and_ends_in_an_error() -> None:
    session = make(timeout_seconds=5)
    reader = session.attach(0, 0, 0.0)
    session.receive_output("stdout", b"so far", 1.0)
    assert session.deadline() == 5.0
    session.receive_timeout(4.9)
    assert session.events() == []
    session.receive_timeout(5.0)
    assert session.events() == [KillRequested()]
    finish(session, 137, 5.1)

    assert session.state is SessionState.TIMED_OUT
    assert text(reader) == b"so far"
    assert session.outcome == ErrorReply(
        error="the command did not end within its timeout of 5 seconds and was killed", error_type="CommandTimeout"
    )


def test_no_timeout_is_no_timeout() -> None:
    session = make(timeout_seconds=0)
    session.attach(0, 0, 0.0)

    assert session.deadline() is None


def test_the_timeout_counts_from_the_start_of_the_process() -> None:
    session = make(started=False, timeout_seconds=5)
    session.process_started(1, 100.0)
    session.attach(0, 0, 100.0)

    assert session.deadline() == 105.0


def test_a_command_that_has_exited_in_time_does_not_time_out_while_it_drains() -> None:
    session = make(timeout_seconds=5)
    session.process_exited(0, 4.9)
    session.receive_timeout(5.95)

    assert session.outcome == Exit(exit_code=0)


def test_a_timeout_is_said_even_if_the_command_cannot_be_killed() -> None:
    session = make(timeout_seconds=5)
    session.receive_timeout(5.0)
    session.receive_timeout(5.0 + KILL_SECONDS)
    assert session.state is SessionState.TIMED_OUT

    session.process_exited(137, 99.0)
    assert session.state is SessionState.TIMED_OUT


def test_a_command_that_nobody_attends_is_killed_after_its_idle_timeout() -> None:
    session = make(idle_timeout_seconds=20, timeout_seconds=0)
    assert session.deadline() == 20.0  # before anybody ever attached
    first, second = session.attach(0, 0, 10.0), session.attach(0, 0, 10.0)
    assert session.deadline() is None
    first.detach(30.0)
    assert session.deadline() is None
    second.detach(40.0)
    assert session.deadline() == 60.0

    session.receive_timeout(60.0)
    assert session.events() == [KillRequested()]
    assert session.deadline() is None
    session.receive_timeout(61.0)
    assert session.events() == []
    finish(session, 137, 62.0)
    assert session.outcome == Exit(exit_code=137)


@pytest.mark.parametrize(("given", "meant"), [(0, 300.0), (-1, None), (-5, None), (7, 7.0)])
def test_idle_timeouts_have_a_default_and_may_be_none(given: float, meant: float | None) -> None:
    assert make(idle_timeout_seconds=given, timeout_seconds=0).deadline() == meant


@pytest.mark.parametrize(("given", "meant"), [(0, 600.0), (-1, float("inf")), (7, 7.0)])
def test_times_to_live_have_a_default_and_may_be_endless(given: float, meant: float) -> None:
    assert make(ttl_seconds=given).ttl_seconds == meant


def test_the_last_to_go_kills_a_command_that_was_to_be_killed_then() -> None:
    session = make(kill_on_disconnect=True)
    first, second = session.attach(0, 0, 0.0), session.attach(0, 0, 0.0)
    first.detach(1.0)
    assert session.events() == []
    second.detach(1.0)
    assert session.events() == [KillRequested()]


# --- control --------------------


def test_a_kill_before_the_start_is_remembered() -> None:
    session = make(started=False)
    session.events()
    session.kill()
    assert session.events() == []
    session.process_started(1, 0.0)

    assert session.events() == [KillRequested()]


def test_a_kill_works_until_the_command_is_over_and_is_ignored_afterwards() -> None:
    session = make()
    session.process_exited(0, 1.0)
    session.kill()
    assert session.events() == [KillRequested()]
    session.receive_timeout(2.0)
    session.kill()
    assert session.events() == []


def test_resizing_is_for_terminals_of_a_possible_size() -> None:
    plain, terminal = make(), make(pty=True)
    for session in (plain, terminal):
        session.resize(100, 50)
        session.resize(0, 50)
        session.resize(100, 1 << 16)

    assert plain.events() == []
    assert terminal.events() == [ResizeRequested(cols=100, rows=50)]


def test_input_waits_for_the_process_and_then_its_closing() -> None:
    session = make()
    session.write_input("h\u00e9\ud800")
    session.close_input()
    session.close_input()
    session.write_input("dropped")
    assert session.events() == []
    assert bytes(session.input_pending) == "h\u00e9\ufffd".encode()
    session.input_written(2)
    assert session.events() == []
    session.input_written(4)

    assert session.events() == [InputCloseRequested()]


def test_input_before_the_start_is_kept() -> None:
    session = make(started=False)
    session.events()
    session.write_input("early")
    session.close_input()
    session.process_started(1, 0.0)
    assert session.events() == []
    session.input_written(5)

    assert session.events() == [InputCloseRequested()]


def test_closing_empty_input_before_the_start_closes_it_at_the_start() -> None:
    session = make(started=False)
    session.events()
    session.close_input()
    assert session.events() == []
    session.process_started(1, 0.0)

    assert session.events() == [InputCloseRequested()]


def test_input_that_was_closed_from_the_beginning_is_nothing_to_do() -> None:
    session = make(close_stdin=True)
    session.write_input("dropped")
    session.close_input()

    assert session.events() == []
    assert not session.input_pending


def test_a_terminal_cannot_be_closed() -> None:
    session = make(pty=True)
    session.close_input()
    session.write_input("still")

    assert bytes(session.input_pending) == b"still"
    assert session.events() == []


def test_whoever_fills_the_input_waits_and_the_others_do_not() -> None:
    session = make()
    session.write_input("x", "first")
    session.write_input("x" * INPUT_BYTES, "second")
    assert session.wants_input_from("first")
    assert not session.wants_input_from("second")
    session.input_written(1)
    assert not session.wants_input_from("second")
    session.input_written(1)
    assert session.wants_input_from("second")


def test_nobody_waits_for_a_process_that_reads_no_more() -> None:
    session = make()
    session.write_input("x" * INPUT_BYTES, "source")
    session.input_failed()
    assert session.wants_input_from("source")


def test_input_that_nobody_reads_is_dropped() -> None:
    session = make()
    session.write_input("x")
    session.input_failed()
    session.write_input("y")
    session.close_input()
    assert not session.input_pending
    assert session.events() == []

    ended = make()
    ended.write_input("x")
    ended.process_exited(0, 1.0)
    ended.write_input("y")
    assert not ended.input_pending
