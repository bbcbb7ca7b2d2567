"""When an HTTP request is sent again, and after how long (wire protocol, section 2.5).

One `HttpRetry` accompanies one call. It is told how each attempt ended and answers with the seconds to wait before the
next one, or None to accept the outcome. Jitter is an argument. All waits of a call together stay below a budget, so a
server that is busy for good costs seconds, not minutes.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import attrs

from .http_call import Resend

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Failure", "HttpRetry", "retry_after"]


class Failure(Enum):
    """How an attempt ended without a response."""

    NOT_SENT = "not sent"
    """No connection: the server never saw the request."""
    INTERRUPTED = "interrupted"
    """The connection broke; the server may have carried the request out."""
    TIMED_OUT = "timed out"
    """No answer in time; the server may have carried the request out."""


@attrs.define
class HttpRetry:
    """The retries of one call."""

    resend: Resend
    max_retries: int = 3
    budget: float = 30.0
    """Seconds that all waits together may take."""
    attempts: int = 0
    """How many attempts failed so far."""
    maybe_done: bool = False
    """Whether a failed attempt may have been carried out."""

    def after_response(self, status: int, headers: Mapping[str, str], *, jitter: float) -> float | None:
        """An attempt was answered. `jitter` is a random number from 0 to 1; header names are lower case."""
        match status:
            case 429 | 503:
                return self._wait(retry_after(headers), jitter)
            case 502 | 504:
                return self._wait_unless_done(retry_after(headers), jitter)
        return None

    def after_failure(self, failure: Failure, *, jitter: float) -> float | None:
        """An attempt was not answered."""
        if failure is Failure.NOT_SENT:
            return self._wait(None, jitter)
        if failure is Failure.INTERRUPTED:
            return self._wait_unless_done(None, jitter)
        self.maybe_done = True
        return None

    def _wait_unless_done(self, asked: float | None, jitter: float) -> float | None:
        """Whether the server did it is unknown."""
        wait = self._wait(asked, jitter) if self.resend is Resend.ALWAYS else None
        self.maybe_done = True
        return wait

    def _wait(self, asked: float | None, jitter: float) -> float | None:
        if self.attempts >= self.max_retries:
            return None
        backoff: float = min(0.5 * 2.0**self.attempts, 8.0)
        wait = backoff * (0.5 + jitter / 2) if asked is None else asked + jitter * backoff / 4
        if wait > self.budget:
            return None
        self.attempts += 1
        self.budget -= wait
        return wait


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a `Retry-After` header; None if there is none or it is not a number that makes sense."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
