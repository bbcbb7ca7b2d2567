"""The states of a tunnel's link, as a table that the code executes; see `states`."""

from __future__ import annotations

from .states import Name, Table

__all__ = ["LINK_TRANSITIONS", "LinkInput", "LinkState"]


class LinkState(Name):
    """What a tunnel has of a connection."""

    IDLE = "idle"
    """There is none, and nobody needs one."""
    DUE = "due"
    """One is to be made at a certain time."""
    CONNECTING = "connecting"
    """The upgrade is under way."""
    OPEN = "open"
    CLOSED = "closed"
    """The tunnel is closed and connects no more."""


class LinkInput(Name):
    """What moves a link."""

    WANT = "want"
    BEGIN = "begin"
    OPEN = "open"
    RETRY = "retry"
    LOSE = "lose"
    CLOSE = "close"


LINK_TRANSITIONS: Table[LinkState, LinkInput] = {
    LinkState.IDLE: {LinkInput.WANT: LinkState.DUE, LinkInput.CLOSE: LinkState.CLOSED},
    LinkState.DUE: {
        LinkInput.BEGIN: LinkState.CONNECTING,
        LinkInput.RETRY: LinkState.DUE,
        LinkInput.LOSE: LinkState.IDLE,
        LinkInput.CLOSE: LinkState.CLOSED,
    },
    LinkState.CONNECTING: {
        LinkInput.OPEN: LinkState.OPEN,
        LinkInput.RETRY: LinkState.DUE,
        LinkInput.LOSE: LinkState.IDLE,
        LinkInput.CLOSE: LinkState.CLOSED,
    },
    LinkState.OPEN: {LinkInput.LOSE: LinkState.IDLE, LinkInput.CLOSE: LinkState.CLOSED},
    LinkState.CLOSED: {LinkInput.LOSE: LinkState.CLOSED},
}
