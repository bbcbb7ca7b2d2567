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
