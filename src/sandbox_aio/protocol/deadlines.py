"""The instants at which a command's client has something to do."""

from __future__ import annotations

import enum

import attrs

__all__ = ["Deadlines", "Due"]


class Due(enum.Enum):
    """What has come due, the gravest first."""

    KILL = "kill_by"
    """The exit of a killed command was not reported in time."""
    RUN = "run_by"
    """The daemon did not end an overdue command in time."""
    KILL_AGAIN = "kill_again_at"
    """A kill that went out behind input had no effect: it is time to send it on another connection."""
    START = "start_by"
    """The command did not start in time."""
    OPEN = "open_by"
    """The connection was not established in time."""
    CONNECT = "connect_at"
    """It is time to connect again."""


_NEED_A_READER = frozenset({Due.KILL, Due.RUN})


@attrs.define(kw_only=True)
class Deadlines:
    """Instants on the driver's clock, in seconds; None where there is none.

    While nobody reads, `kill_by` and `run_by` stand still: what they wait for may have come long ago, behind output
    that is not taken.
    """

    kill_by: float | None = None
    run_by: float | None = None
    kill_again_at: float | None = None
    start_by: float | None = None
    open_by: float | None = None
    connect_at: float | None = None
    paused_at: float | None = None
    """Since when nobody reads."""

    def pause(self, now: float) -> None:
        """Nobody reads from now on."""
        if self.paused_at is None:
            self.paused_at = now

    def resume(self, now: float) -> None:
        """Somebody reads again: move what stood still by the time that passed."""
        if self.paused_at is not None:
            passed, self.paused_at = now - self.paused_at, None
            self.kill_by = None if self.kill_by is None else self.kill_by + passed
            self.run_by = None if self.run_by is None else self.run_by + passed

    def due(self, now: float) -> Due | None:
        """Return the gravest thing that has come due."""
        for due in Due:
            instant: float | None = getattr(self, due.value)
            if instant is not None and now >= instant and not (self.paused_at is not None and due in _NEED_A_READER):
                return due
        return None

    def earliest(self, *more: float | None) -> float | None:
        """Return the first instant among these and others."""
        instants = [self.kill_again_at, self.start_by, self.open_by, self.connect_at, *more]
        if self.paused_at is None:
            instants += [self.kill_by, self.run_by]
        return min((instant for instant in instants if instant is not None), default=None)
