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
    START = "start_by"
    """The command did not start in time."""
    OPEN = "open_by"
    """The connection was not established in time."""
    CONNECT = "connect_at"
    """It is time to connect again."""


@attrs.define(kw_only=True)
class Deadlines:
    """Instants on the driver's clock, in seconds; None where there is none."""

    kill_by: float | None = None
    run_by: float | None = None
    start_by: float | None = None
    open_by: float | None = None
    connect_at: float | None = None

    def due(self, now: float) -> Due | None:
        """Return the gravest thing that has come due."""
        for due in Due:
            instant: float | None = getattr(self, due.value)
            if instant is not None and now >= instant:
                return due
        return None

    def earliest(self, *more: float | None) -> float | None:
        """Return the first instant among these and others."""
        instants = (self.kill_by, self.run_by, self.start_by, self.open_by, self.connect_at, *more)
        return min((instant for instant in instants if instant is not None), default=None)
