"""How far something is: on a terminal one line that changes, else a line whenever there is something new."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TextIO

__all__ = ["ProgressLine"]

BAR_WIDTH = 24
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) of (\d+(?:\.\d+)?) MB")


class ProgressLine:
    """Shows messages such as `pulling: 2 of 5 layers, 10.0 of 31.4 MB`. Leave it to have the terminal's line cleared.

    What is no terminal gets a message only if more has changed in it than the number of bytes.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._terminal = stream.isatty()
        self._said = ""

    def show(self, message: str) -> None:
        """Show a message instead of the one before."""
        if self._quiet:
            return
        line = " ".join(message.split())
        line = "".join(character for character in line if character.isprintable())  # it comes from a server
        if self._terminal:
            self._say(f"\r{_with_bar(line)[: shutil.get_terminal_size().columns - 1]}\x1b[K")
        elif (kind := _AMOUNT.sub("", line)) != self._said:
            self._said = kind
            self._say(f"{line}\n")

    def _say(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._terminal and not self._quiet:
            self._say("\r\x1b[K")


def _with_bar(line: str) -> str:
    amount = _AMOUNT.search(line)
    if amount is None or not float(amount[2]):
        return line
    filled = min(BAR_WIDTH, round(BAR_WIDTH * float(amount[1]) / float(amount[2])))
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {line}"
