"""When to look again at something that takes its time (wire protocol, section 1.16)."""

from __future__ import annotations

import attrs

__all__ = ["Polling"]

_FIRST_WAIT = 0.05
_GROWTH = 1.2
"""So that what is waited for is seen a tenth of its time late, on average."""


@attrs.define
class Polling:
    """The rhythm of one wait: fast at first, then every `interval` seconds, with a last look at the deadline."""

    deadline: float
    """On the clock that `next_wait` is called with."""
    interval: float
    """The longest pause, in seconds."""
    _wait: float = attrs.field(default=_FIRST_WAIT, init=False)

    def next_wait(self, now: float) -> float | None:
        """Seconds until the next look; None when the deadline has passed."""
        if now >= self.deadline:
            return None
        wait = min(self._wait, self.interval, self.deadline - now)
        self._wait *= _GROWTH
        return wait
