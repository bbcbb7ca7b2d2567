"""Every state of the protocol, and every legal step between two states.

Two rules hold here. This file knows nothing but names: no bytes, no clock, no peer. And the code that runs the
protocol moves from one state to another only through `step`, by these tables, so what is not written here cannot
happen. The diagrams in `docs/states/` are drawn from the same tables.

A table maps a state to the inputs that are legal in it, and each input to the state that follows. An input that a
state does not list is illegal there: `step` raises `LocalProtocolError` and nothing has changed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from ..errors import LocalProtocolError

__all__ = [
    "ATTACHMENT_TRANSITIONS",
    "COMMAND_TRANSITIONS",
    "INPUT_TRANSITIONS",
    "KILL_TRANSITIONS",
    "SESSION_TRANSITIONS",
    "TERMINAL_COMMAND_STATES",
    "WEBSOCKET_TRANSITIONS",
    "AttachmentInput",
    "AttachmentState",
    "CommandInput",
    "CommandState",
    "InputInput",
    "InputState",
    "KillInput",
    "KillState",
    "SessionInput",
    "SessionState",
    "WebSocketInput",
    "WebSocketState",
    "step",
]

S = TypeVar("S", bound=enum.Enum)
I = TypeVar("I", bound=enum.Enum)  # noqa: E741 - a state and an input

Table = Mapping[S, Mapping[I, S]]


class Name(enum.Enum):
    """A state or an input. Compared and hashed by identity: tables are looked up for every frame."""

    if TYPE_CHECKING:

        def __hash__(self) -> int: ...

    else:
        __hash__ = object.__hash__


def step(table: Table[S, I], state: S, input: I) -> S:
    """Return the state that follows `state` on `input`.

    Raises:
        LocalProtocolError: `input` is illegal in `state`.
    """
    try:
        return table[state][input]
    except KeyError:
        legal = ", ".join(i.name for i in table.get(state, {})) or "nothing: it is final"
        raise LocalProtocolError(
            f"{type(state).__name__} {state.name} does not allow {input.name} (it allows {legal})"
        ) from None


# --- one websocket connection (RFC 6455), either role -----------------------------------------------------------------


class WebSocketState(Name):
    """Where one websocket connection stands."""

    CONNECTING = "connecting"
    """The upgrade is under way."""
    OPEN = "open"
    CLOSING = "closing"
    """We sent a close frame and wait for the peer's."""
    CLOSED = "closed"
    """Both close frames went over, or the peer ended the stream."""
    FAILED = "failed"
    """The peer broke the protocol, refused the upgrade or fell silent. Nothing is read any more."""


class WebSocketInput(Name):
    """What moves a websocket connection."""

    ACCEPT = "accept"
    CLOSE = "close"
    PEER_CLOSE = "peer close"
    EOF = "end of stream"
    FAIL = "fail"


WEBSOCKET_TRANSITIONS: Table[WebSocketState, WebSocketInput] = {
    WebSocketState.CONNECTING: {
        WebSocketInput.ACCEPT: WebSocketState.OPEN,
        WebSocketInput.EOF: WebSocketState.FAILED,
        WebSocketInput.FAIL: WebSocketState.FAILED,
    },
    WebSocketState.OPEN: {
        WebSocketInput.CLOSE: WebSocketState.CLOSING,
        WebSocketInput.PEER_CLOSE: WebSocketState.CLOSED,
        WebSocketInput.EOF: WebSocketState.CLOSED,
        WebSocketInput.FAIL: WebSocketState.FAILED,
    },
    WebSocketState.CLOSING: {
        WebSocketInput.PEER_CLOSE: WebSocketState.CLOSED,
        WebSocketInput.EOF: WebSocketState.CLOSED,
        WebSocketInput.FAIL: WebSocketState.FAILED,
    },
    WebSocketState.CLOSED: {},
    WebSocketState.FAILED: {},
}


# --- one command, seen by the client, over any number of connections --------------------------------------------------


class CommandState(Name):
    """Where a command stands, as its client knows it."""

    NEW = "new"
    CONNECTING = "connecting"
    """A connection is being opened; no `started` was ever seen."""
    STARTING = "starting"
    """`execute` was sent and not yet answered."""
    WAITING = "waiting"
    """The start failed in a way that may pass; waiting to send it again, with the same command id."""
    RUNNING = "running"
    """Attached to a command that is known to run."""
    DETACHED = "detached"
    """The connection was lost after `started`; waiting to attach again."""
    REATTACHING = "reattaching"
    """A connection is being opened in order to attach."""
    RESUMING = "resuming"
    """`reconnect` was sent and not yet answered."""
    RELEASED = "released"
    """The caller let go. The command runs on without us."""
    EXITED = "exited"
    FAILED = "failed"


class CommandInput(Name):
    """What moves a command at its client."""

    CONNECT = "connect"
    ATTACH = "attach"
    UPGRADED = "upgraded"
    STARTED = "started"
    OUTPUT = "output"
    LOST = "connection lost"
    EXIT = "exit"
    FAIL = "fail"
    RELEASE = "release"


_ENDS = {CommandInput.FAIL: CommandState.FAILED, CommandInput.RELEASE: CommandState.RELEASED}

COMMAND_TRANSITIONS: Table[CommandState, CommandInput] = {
    CommandState.NEW: {
        CommandInput.CONNECT: CommandState.CONNECTING,
        CommandInput.ATTACH: CommandState.REATTACHING,
        **_ENDS,
    },
    CommandState.CONNECTING: {
        CommandInput.UPGRADED: CommandState.STARTING,
        CommandInput.LOST: CommandState.WAITING,
        **_ENDS,
    },
    CommandState.STARTING: {
        CommandInput.STARTED: CommandState.RUNNING,
        CommandInput.LOST: CommandState.WAITING,
        **_ENDS,
    },
    CommandState.WAITING: {CommandInput.CONNECT: CommandState.CONNECTING, **_ENDS},
    CommandState.RUNNING: {
        CommandInput.STARTED: CommandState.RUNNING,
        CommandInput.OUTPUT: CommandState.RUNNING,
        CommandInput.LOST: CommandState.DETACHED,
        CommandInput.EXIT: CommandState.EXITED,
        **_ENDS,
    },
    CommandState.DETACHED: {CommandInput.ATTACH: CommandState.REATTACHING, **_ENDS},
    CommandState.REATTACHING: {
        CommandInput.UPGRADED: CommandState.RESUMING,
        CommandInput.LOST: CommandState.DETACHED,
        **_ENDS,
    },
    CommandState.RESUMING: {
        CommandInput.STARTED: CommandState.RUNNING,
        CommandInput.OUTPUT: CommandState.RUNNING,
        CommandInput.LOST: CommandState.DETACHED,
        CommandInput.EXIT: CommandState.EXITED,
        **_ENDS,
    },
    CommandState.RELEASED: {},
    CommandState.EXITED: {},
    CommandState.FAILED: {},
}

TERMINAL_COMMAND_STATES = frozenset(state for state, inputs in COMMAND_TRANSITIONS.items() if not inputs)


# --- the caller's wish to kill, which outlives connections ------------------------------------------------------------


class KillState(Name):
    """How far the wish to kill a command has come."""

    NONE = "none"
    WANTED = "wanted"
    """The caller asked; no attached connection carried it yet."""
    SENT = "sent"
    """It went out on the connection that is attached now. Whether it arrived is known only by the exit."""


class KillInput(Name):
    """What moves the wish to kill."""

    KILL = "kill"
    SEND = "send"
    LOST = "connection lost"


KILL_TRANSITIONS: Table[KillState, KillInput] = {
    KillState.NONE: {KillInput.KILL: KillState.WANTED, KillInput.LOST: KillState.NONE},
    KillState.WANTED: {
        KillInput.KILL: KillState.WANTED,
        KillInput.SEND: KillState.SENT,
        KillInput.LOST: KillState.WANTED,
    },
    KillState.SENT: {KillInput.KILL: KillState.SENT, KillInput.LOST: KillState.WANTED},
}


# --- the command's standard input, as far as this client is concerned -------------------------------------------------


class InputState(Name):
    """Whether the command's standard input takes more."""

    OPEN = "open"
    CLOSED = "closed"
    TERMINAL = "terminal"
    """The command has a terminal: there is nothing to close, end of file is a byte (0x04)."""


class InputInput(Name):
    """What moves the standard input."""

    WRITE = "write"
    CLOSE = "close"


INPUT_TRANSITIONS: Table[InputState, InputInput] = {
    InputState.OPEN: {InputInput.WRITE: InputState.OPEN, InputInput.CLOSE: InputState.CLOSED},
    InputState.CLOSED: {InputInput.CLOSE: InputState.CLOSED},
    InputState.TERMINAL: {InputInput.WRITE: InputState.TERMINAL, InputInput.CLOSE: InputState.TERMINAL},
}


# --- one command, seen by the daemon ----------------------------------------------------------------------------------


class SessionState(Name):
    """Where a command stands in the daemon that runs it."""

    STARTING = "starting"
    """The process is to be made."""
    RUNNING = "running"
    DRAINING = "draining"
    """The shell has exited; something may still hold its output open."""
    OVERDUE = "overdue"
    """The command ran out of time and is being killed."""
    EXITED = "exited"
    TIMED_OUT = "timed out"
    FAILED = "failed"
    """The command could not be started."""
    EXPIRED = "expired"
    """Its output is no longer kept."""


class SessionInput(Name):
    """What moves a command in the daemon."""

    STARTED = "started"
    SPAWN_FAILED = "spawn failed"
    TIMEOUT = "timeout"
    PROCESS_EXIT = "process exit"
    DRAINED = "drained"
    EXPIRE = "expire"


SESSION_TRANSITIONS: Table[SessionState, SessionInput] = {
    SessionState.STARTING: {
        SessionInput.STARTED: SessionState.RUNNING,
        SessionInput.SPAWN_FAILED: SessionState.FAILED,
    },
    SessionState.RUNNING: {
        SessionInput.PROCESS_EXIT: SessionState.DRAINING,
        SessionInput.TIMEOUT: SessionState.OVERDUE,
    },
    SessionState.DRAINING: {SessionInput.DRAINED: SessionState.EXITED},
    SessionState.OVERDUE: {
        SessionInput.PROCESS_EXIT: SessionState.OVERDUE,
        SessionInput.DRAINED: SessionState.TIMED_OUT,
    },
    SessionState.EXITED: {SessionInput.EXPIRE: SessionState.EXPIRED},
    SessionState.TIMED_OUT: {SessionInput.EXPIRE: SessionState.EXPIRED},
    SessionState.FAILED: {SessionInput.EXPIRE: SessionState.EXPIRED},
    SessionState.EXPIRED: {},
}


# --- one connection to the daemon's command endpoint ------------------------------------------------------------------


class AttachmentState(Name):
    """Where one connection to a command stands in the daemon."""

    WAITING = "waiting"
    """Neither `execute` nor `reconnect` has come."""
    ATTACHED = "attached"
    REFUSED = "refused"
    """There is nothing to attach to; the error is still to be said."""
    FINISHED = "finished"
    """The last frame was handed out: an exit or an error."""
    DETACHED = "detached"
    """The connection is gone."""


class AttachmentInput(Name):
    """What moves a connection in the daemon."""

    ATTACH = "attach"
    REFUSE = "refuse"
    FINISH = "finish"
    DETACH = "detach"


ATTACHMENT_TRANSITIONS: Table[AttachmentState, AttachmentInput] = {
    AttachmentState.WAITING: {
        AttachmentInput.ATTACH: AttachmentState.ATTACHED,
        AttachmentInput.REFUSE: AttachmentState.REFUSED,
        AttachmentInput.DETACH: AttachmentState.DETACHED,
    },
    AttachmentState.ATTACHED: {
        AttachmentInput.FINISH: AttachmentState.FINISHED,
        AttachmentInput.DETACH: AttachmentState.DETACHED,
    },
    AttachmentState.REFUSED: {
        AttachmentInput.FINISH: AttachmentState.FINISHED,
        AttachmentInput.DETACH: AttachmentState.DETACHED,
    },
    AttachmentState.FINISHED: {AttachmentInput.DETACH: AttachmentState.DETACHED},
    AttachmentState.DETACHED: {AttachmentInput.DETACH: AttachmentState.DETACHED},
}
