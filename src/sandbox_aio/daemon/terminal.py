"""A pseudo-terminal of the sandbox's own (wire protocol, section 3.7)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios

__all__ = ["COLUMNS", "ROWS", "open_terminal", "resize", "take_control"]

COLUMNS, ROWS = 80, 24
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441


def open_terminal(owner: int) -> tuple[int, int]:
    """Return the two ends of a new terminal of 80 by 24: ours, which does not block, and that of the process.

    Args:
        owner: the user whose processes may open the terminal by its name.

    Raises:
        OSError: there are no terminals here, or none are left.
    """
    ours = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(ours, _TIOCSPTLCK, struct.pack("i", 0))
        theirs = fcntl.ioctl(ours, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # an unprivileged daemon owns it already
            os.fchown(theirs, owner, -1)
        resize(ours, COLUMNS, ROWS)
        os.set_blocking(ours, False)
    except OSError:
        os.close(ours)
        raise
    return ours, theirs


def resize(fd: int, columns: int, rows: int) -> None:
    """Set the size; the foreground process group gets SIGWINCH. A terminal that is gone has no size."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def take_control() -> None:
    """In the child, which leads a session: make the terminal on descriptor 0 the controlling one."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
