"""How the failures of a task group reach the user: one failure as itself, not as a group of one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["single_error"]


@asynccontextmanager
async def single_error() -> AsyncGenerator[None]:
    """Unwrap a group that holds a single real error, however deep.

    Several real errors stay a group; none is ever hidden.

    Cancellations inside a group are the echo of the real error and give way to it.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = _leaves(group)
        cancelled = anyio.get_cancelled_exc_class()
        real = [error for error in errors if not isinstance(error, cancelled)]
        if len(real) == 1:
            raise real[0] from real[0].__cause__
        if not real:
            raise errors[0] from None
        raise


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
