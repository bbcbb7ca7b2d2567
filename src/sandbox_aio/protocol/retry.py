"""How often and how long to try again. Time and chance are arguments."""

from __future__ import annotations

import attrs

__all__ = ["Attempts", "Backoff", "parse_retry_after"]


@attrs.frozen(kw_only=True)
class Backoff:
    """Exponential delays: `base`, twice that, four times that, and so on up to `cap` seconds, each made shorter by
    chance.

    A delay is multiplied by a factor between `1 - spread` and 1, so that clients that were cut off together do not
    come back together.
    """

    base: float = 0.5
    cap: float = 8.0
    spread: float = 0.2

    def delay(self, attempt: int, chance: float) -> float:
        """Return the delay in seconds before attempt number `attempt`, from 1; `chance` is in [0, 1)."""
        steps = min(attempt - 1, 63)
        return min(self.base * 2.0**steps, self.cap) * (1.0 - self.spread * chance)


class Attempts:
    """Counts the tries of one purpose.

    The count goes back to zero by `refill`, that is, by progress and by nothing else.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self.used: int = 0

    def spend(self) -> bool:
        """Take one try; False if none is left."""
        if self.used >= self.limit:
            return False
        self.used += 1
        return True

    def refill(self) -> None:
        """Progress was made: all tries are there again."""
        self.used = 0


def parse_retry_after(value: str | None) -> float | None:
    """Read a `Retry-After` header: a finite, non-negative number of seconds, else None."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < float("inf") else None
