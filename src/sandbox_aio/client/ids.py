"""Names that nobody else chooses."""

from __future__ import annotations

import secrets
import time

__all__ = ["new_boundary", "new_command_id", "new_sandbox_name"]


def new_command_id() -> str:
    """Return a UUID of version 7, as 32 hex digits: unique, and sortable by time."""
    random = secrets.randbits(74)
    milliseconds = time.time_ns() // 1_000_000
    return f"{milliseconds << 80 | 7 << 76 | (random >> 62) << 64 | 2 << 62 | random & (1 << 62) - 1:032x}"


def new_sandbox_name() -> str:
    """Return a name for a sandbox that nobody chose a name for."""
    return f"sandbox-{secrets.token_hex(8)}"


def new_boundary() -> str:
    """Return a line that no uploaded file contains."""
    return secrets.token_hex(16)
