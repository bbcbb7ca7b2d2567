"""When a request is sent again: the table of the wire protocol, section 2.5, with a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.http_call import Resend
from sandbox_aio.protocol.http_retry import Failure, HttpRetry, retry_after

ALWAYS, IF_REFUSED = Resend.ALWAYS, Resend.IF_REFUSED


@pytest.mark.parametrize("resend", Resend)
@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_request_is_sent_again(resend: Resend, status: int) -> None:
    retry = HttpRetry(resend)
    assert retry.after_response(status, {}, jitter=1) == 0.5
    assert not retry.maybe_done


@pytest.mark.parametrize("status", [502, 504])
def test_an_unknown_outcome_is_tried_again_only_if_that_is_harmless(status: int) -> None:
    harmless, harmful = HttpRetry(ALWAYS), HttpRetry(IF_REFUSED)
    assert harmless.after_response(status, {}, jitter=1) == 0.5
    assert harmful.after_response(status, {}, jitter=1) is None
    assert harmless.maybe_done
    assert harmful.maybe_done


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 404, 408, 409, 422, 500, 501])
def test_all_other_answers_are_answers(status: int) -> None:
    assert HttpRetry(ALWAYS).after_response(status, {}, jitter=0) is None


def test_failures() -> None:
    assert HttpRetry(IF_REFUSED).after_failure(Failure.NOT_SENT, jitter=0) == 0.25
    assert HttpRetry(ALWAYS).after_failure(Failure.INTERRUPTED, jitter=0) == 0.25
    assert HttpRetry(IF_REFUSED).after_failure(Failure.INTERRUPTED, jitter=0) is None
    timed_out = HttpRetry(ALWAYS)
    assert timed_out.after_failure(Failure.TIMED_OUT, jitter=0) is None
    assert timed_out.maybe_done


def test_backoff_doubles_up_to_the_last_retry() -> None:
    retry = HttpRetry(ALWAYS, max_retries=6)
    waits = [retry.after_failure(Failure.NOT_SENT, jitter=1) for _ in range(7)]
    assert waits == [0.5, 1, 2, 4, 8, 8, None]
    assert HttpRetry(ALWAYS, max_retries=0).after_failure(Failure.NOT_SENT, jitter=0) is None


def test_what_the_server_asks_for_is_done_within_the_budget() -> None:
    retry = HttpRetry(ALWAYS, budget=5)
    assert retry.after_response(429, {"retry-after": "2"}, jitter=0) == 2
    assert retry.after_response(429, {"retry-after": "2"}, jitter=0) == 2
    assert retry.after_response(429, {"retry-after": "2"}, jitter=0) is None
    assert HttpRetry(ALWAYS).after_response(503, {"retry-after": "2"}, jitter=1) == 2.125


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("1.5", 1.5), ("-1", None), ("nan", None), ("inf", None), ("", None), ("Wed, 21 Oct 2026", None)],
)
def test_retry_after_is_a_number_of_seconds(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds
    assert retry_after({}) is None


@given(st.lists(st.sampled_from([429, 502, 503, 504, *Failure])), st.floats(0, 1), st.integers(0, 10), st.floats(0, 60))
def test_tries_and_waits_are_bounded(events: list[int | Failure], jitter: float, most: int, budget: float) -> None:
    retry = HttpRetry(ALWAYS, most, budget)
    waits = []
    for event in events:
        if isinstance(event, Failure):
            wait = retry.after_failure(event, jitter=jitter)
        else:
            wait = retry.after_response(event, {}, jitter=jitter)
        if wait is not None:
            waits.append(wait)
    assert len(waits) <= most
    assert sum(waits) <= budget + 1e-6
    assert all(wait >= 0 for wait in waits)
