"""The states of a yamux stream and of a yamux session, as tables that the code executes; see `states`.

Which side opened a stream makes no difference once it is open: a peer need not acknowledge one, and data may follow a
SYN at once. So there is no state between opening and open.
"""

from __future__ import annotations

from .states import Name, Table

__all__ = [
    "YAMUX_SESSION_TRANSITIONS",
    "YAMUX_STREAM_TRANSITIONS",
    "YamuxInput",
    "YamuxSessionInput",
    "YamuxSessionState",
    "YamuxStreamState",
]


class YamuxStreamState(Name):
    """One stream."""

    OPEN = "open"
    """Both sides may send."""
    HALF_LOCAL = "half local"
    """We have said that we send no more."""
    HALF_REMOTE = "half remote"
    """The peer has said that it sends no more."""
    CLOSED = "closed"
    """Both have; the stream is no longer in the session's table."""
    RESET = "reset"
    """One of the two broke it off; it is no longer in the table."""


class YamuxInput(Name):
    """What moves a stream."""

    SEND_FIN = "send FIN"
    RECEIVE_FIN = "receive FIN"
    SEND_RST = "send RST"
    RECEIVE_RST = "receive RST"


YAMUX_STREAM_TRANSITIONS: Table[YamuxStreamState, YamuxInput] = {
    YamuxStreamState.OPEN: {
        YamuxInput.SEND_FIN: YamuxStreamState.HALF_LOCAL,
        YamuxInput.RECEIVE_FIN: YamuxStreamState.HALF_REMOTE,
        YamuxInput.SEND_RST: YamuxStreamState.RESET,
        YamuxInput.RECEIVE_RST: YamuxStreamState.RESET,
    },
    YamuxStreamState.HALF_LOCAL: {
        YamuxInput.RECEIVE_FIN: YamuxStreamState.CLOSED,
        YamuxInput.SEND_RST: YamuxStreamState.RESET,
        YamuxInput.RECEIVE_RST: YamuxStreamState.RESET,
    },
    YamuxStreamState.HALF_REMOTE: {
        YamuxInput.SEND_FIN: YamuxStreamState.CLOSED,
        YamuxInput.SEND_RST: YamuxStreamState.RESET,
        YamuxInput.RECEIVE_RST: YamuxStreamState.RESET,
    },
    YamuxStreamState.CLOSED: {},
    YamuxStreamState.RESET: {},
}


class YamuxSessionState(Name):
    """One session."""

    OPEN = "open"
    LEAVING = "leaving"
    """One side has said go-away: no stream is opened any more, those that are open go on."""
    ENDED = "ended"
    """The transport ended."""
    FAILED = "failed"
    """The peer broke the protocol, or fell silent."""


class YamuxSessionInput(Name):
    """What moves a session."""

    GO_AWAY = "go away"
    END = "end"
    FAIL = "fail"


YAMUX_SESSION_TRANSITIONS: Table[YamuxSessionState, YamuxSessionInput] = {
    YamuxSessionState.OPEN: {
        YamuxSessionInput.GO_AWAY: YamuxSessionState.LEAVING,
        YamuxSessionInput.END: YamuxSessionState.ENDED,
        YamuxSessionInput.FAIL: YamuxSessionState.FAILED,
    },
    YamuxSessionState.LEAVING: {
        YamuxSessionInput.GO_AWAY: YamuxSessionState.LEAVING,
        YamuxSessionInput.END: YamuxSessionState.ENDED,
        YamuxSessionInput.FAIL: YamuxSessionState.FAILED,
    },
    YamuxSessionState.ENDED: {},
    YamuxSessionState.FAILED: {},
}
