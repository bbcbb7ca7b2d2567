"""How long to wait before a registry is asked again, and how often."""

from __future__ import annotations

import asyncio
import random
from typing import Final

__all__ = ["Backoff"]

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 8.0
"""Seconds between tries: they double, and what the registry asks for counts up to the longest."""


class Backoff:
    """The pauses between so many tries of one thing."""

    def __init__(self, tries: int) -> None:
        self._left = tries
        self._pause = FIRST_PAUSE

    async def pause(self, asked: float = 0.0) -> bool:
        """Wait before the next try; return False, at once, when that was the last. `asked`: seconds, the registry's."""
        self._left -= 1
        if self._left <= 0:
            return False
        await asyncio.sleep(min(max(self._pause * random.uniform(0.5, 1), asked), LONGEST_PAUSE))
        self._pause *= 2
        return True
