"""What a command's caller wants, and how much of it has gone out (wire protocol, sections 3.6 to 3.8).

A wish may come at any time; what cannot be sent now is kept until the command is attached. A kill and a closed input
are sent anew on every later connection, because nobody knows whether they arrived. Input is sent at most once.
"""

from __future__ import annotations

from ..errors import LocalProtocolError
from .frames import ClientFrame, CloseStdin, Input, Kill, Resize
from .states import INPUT_TRANSITIONS, KILL_TRANSITIONS, InputInput, InputState, KillInput, KillState, step

__all__ = ["Intents"]

INPUT_CHARACTERS = 64 * 1024
"""How much of a text is in one frame: escaped as JSON at most twelve times as many bytes, so less than 1 MiB
(section 3.9).
"""


class Intents:
    """The wishes of one command's caller.

    Args:
        terminal: whether the command has a terminal.
        input_closed: whether its input was closed from the start.
        max_pending_input_bytes: how much input is kept while the command is not attached.
    """

    def __init__(self, *, terminal: bool, input_closed: bool, max_pending_input_bytes: int) -> None:
        self.kill_state: KillState = KillState.NONE
        self.input_state = InputState.TERMINAL if terminal else InputState.CLOSED if input_closed else InputState.OPEN
        self._limit = max_pending_input_bytes
        self._input: list[str] = []
        self._input_bytes = 0
        self._size: Resize | None = None
        self._close_due = False

    def kill(self) -> None:
        """Ask for a kill; asking again changes nothing."""
        self._step_kill(KillInput.KILL)

    def send_input(self, text: str, *, keep: bool) -> None:
        """Add input; with `keep` it cannot go out now, and counts against the bound.

        Raises:
            LocalProtocolError: the input is closed, or the bound is reached. Nothing was added.
        """
        state = step(INPUT_TRANSITIONS, self.input_state, InputInput.WRITE)
        size = len(text.encode("utf-8", "surrogatepass"))
        if keep and self._input_bytes + size > self._limit:
            raise LocalProtocolError(
                f"the command is not attached and {self._input_bytes} bytes of input wait already;"
                f" {size} more would be over the limit of {self._limit}"
            )
        self.input_state = state
        self._input += [text[start : start + INPUT_CHARACTERS] for start in range(0, len(text), INPUT_CHARACTERS)]
        self._input_bytes += size

    def close_input(self) -> None:
        """Close the input; with a terminal this does nothing, and neither does it again."""
        was = self.input_state
        self.input_state = step(INPUT_TRANSITIONS, was, InputInput.CLOSE)
        self._close_due = self._close_due or was is InputState.OPEN

    def resize(self, cols: int, rows: int) -> None:
        """Set the terminal's size.

        Raises:
            LocalProtocolError: the command has no terminal.
        """
        if self.input_state is not InputState.TERMINAL:
            raise LocalProtocolError("a command without a terminal has no size; run it with pty=True")
        self._size = Resize(cols=cols, rows=rows)

    def connection_lost(self) -> None:
        """Whether a kill or a closed input arrived is unknown now: both are due again."""
        self._step_kill(KillInput.LOST)
        self._close_due = self._close_due or self.input_state is InputState.CLOSED

    def clear(self) -> None:
        """Drop the input that waits: there is nobody to send it to any more."""
        self._input, self._input_bytes = [], 0

    def frames(self) -> list[ClientFrame]:
        """Drain what is to be sent on the attached connection, in order."""
        frames: list[ClientFrame] = [Input(data=text) for text in self._input]
        self.clear()
        if self._size is not None:
            frames.append(self._size)
            self._size = None
        if self._close_due:
            frames.append(CloseStdin())
            self._close_due = False
        if self.kill_state is KillState.WANTED:
            frames.append(Kill())
            self._step_kill(KillInput.SEND)
        return frames

    def _step_kill(self, input: KillInput) -> None:
        self.kill_state = step(KILL_TRANSITIONS, self.kill_state, input)
