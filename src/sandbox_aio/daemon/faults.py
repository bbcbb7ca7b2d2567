"""Errors as the daemon says them (wire protocol, section 2.1)."""

from __future__ import annotations

__all__ = ["Fault"]


class Fault(Exception):
    """A request that cannot be served: a status, the type of the error, and a sentence for the user."""

    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message

    @property
    def body(self) -> dict[str, object]:
        """The canonical body."""
        return {"detail": {"error": self.error, "message": self.message}}
