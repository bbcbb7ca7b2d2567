"""The rhythm of a wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.polling import Polling


def test_it_looks_often_at_first_and_then_in_step() -> None:
    polling = Polling(deadline=100, interval=0.2)
    assert [round(polling.next_wait(0) or 0, 4) for _ in range(6)] == [0.05, 0.06, 0.072, 0.0864, 0.1037, 0.1244]
    assert [polling.next_wait(0) for _ in range(5)][-2:] == [0.2, 0.2]


def test_the_last_look_is_at_the_deadline() -> None:
    polling = Polling(deadline=1, interval=1)
    assert polling.next_wait(0.98) == 1 - 0.98
    assert polling.next_wait(1) is None


@given(st.floats(0.001, 10), st.floats(0.01, 5))
def test_it_ends_at_the_deadline(timeout: float, interval: float) -> None:
    polling, now, looks = Polling(timeout, interval), 0.0, 0
    while (wait := polling.next_wait(now)) is not None:
        assert 0 < wait <= interval
        now += wait
        looks += 1
    assert now >= timeout
    assert looks <= timeout / interval + 40
