"""`protocol/deadlines.py`: what comes due, and when the next thing does."""

from __future__ import annotations

import pytest

from sandbox_aio.protocol.deadlines import Deadlines, Due


def test_nothing_is_due_where_there_is_nothing() -> None:
    assert Deadlines().due(1e9) is None
    assert Deadlines().earliest() is None
    assert Deadlines().earliest(None, 3.0) == 3.0


@pytest.mark.parametrize("due", Due)
def test_each_is_due_from_its_instant_on(due: Due) -> None:
    deadlines = Deadlines(**{due.value: 5.0})
    assert (deadlines.due(4.9), deadlines.due(5.0), deadlines.earliest(7.0)) == (None, due, 5.0)


def test_the_gravest_comes_first() -> None:
    deadlines = Deadlines(kill_by=3.0, run_by=2.0, connect_at=1.0)
    assert [deadlines.due(now) for now in (1.0, 2.0, 3.0)] == [Due.CONNECT, Due.RUN, Due.KILL]
    assert deadlines.earliest() == 1.0


def test_while_nobody_reads_what_waits_for_the_daemon_stands_still() -> None:
    deadlines = Deadlines(kill_by=10.0, run_by=20.0, connect_at=30.0)
    deadlines.pause(5.0)
    deadlines.pause(7.0)
    assert deadlines.earliest() == 30.0
    assert deadlines.due(29.0) is None
    deadlines.resume(105.0)
    assert (deadlines.kill_by, deadlines.run_by, deadlines.connect_at) == (110.0, 120.0, 30.0)
    assert deadlines.paused_at is None


def test_resuming_moves_nothing_that_is_not_there_and_nothing_twice() -> None:
    deadlines = Deadlines()
    deadlines.pause(5.0)
    deadlines.resume(9.0)
    assert (deadlines.kill_by, deadlines.run_by) == (None, None)
    deadlines.kill_by = 20.0
    deadlines.resume(15.0)
    assert deadlines.kill_by == 20.0
