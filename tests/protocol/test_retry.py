"""`protocol/retry.py`: literal numbers for wire protocol, sections 3.2, 3.10 and 3.11."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.retry import Attempts, Backoff, parse_retry_after


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0), (100, 8.0), (10**9, 8.0)]
)
def test_delays_double_up_to_the_cap(attempt: int, seconds: float) -> None:
    assert Backoff().delay(attempt, 0.0) == seconds


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 2.0), (0.25, 1.9), (0.5, 1.8), (0.75, 1.7)])
def test_chance_makes_a_delay_shorter_by_a_fifth_at_most(chance: float, seconds: float) -> None:
    assert Backoff().delay(3, chance) == pytest.approx(seconds)


def test_base_cap_and_spread_are_free() -> None:
    backoff = Backoff(base=3.0, cap=10.0, spread=0.5)
    assert [backoff.delay(n, 0.0) for n in (1, 2, 3)] == [3.0, 6.0, 10.0]
    assert backoff.delay(1, 0.5) == 2.25


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_outside_its_bounds(attempt: int, chance: float) -> None:
    assert 0.4 <= Backoff().delay(attempt, chance) <= 8.0


def test_attempts_are_spent_and_refilled_by_progress() -> None:
    attempts = Attempts(2)
    assert [attempts.spend(), attempts.spend(), attempts.spend(), attempts.used] == [True, True, False, 2]
    attempts.refill()
    assert attempts.used == 0
    assert attempts.spend()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *[("0", 0.0), ("2", 2.0), ("1.5", 1.5), (" 7 ", 7.0), ("1e2", 100.0), (None, None), ("", None), ("soon", None)],
        *[("-1", None), ("nan", None), ("inf", None), ("-inf", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
    ],
)
def test_retry_after_is_a_finite_number_of_seconds(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds
