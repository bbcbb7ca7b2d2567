"""What the API answers when it does not do what it was asked. Wire protocol, section 2.1."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ApiError", "Detail", "InvalidFieldsError"]


@attrs.frozen
class Detail:
    """One thing wrong with one field of a request body."""

    field: str
    message: str


class ApiError(Exception):
    """An answer other than success. Raised anywhere below the router, which sends it.

    `error` is the machine-readable type that the SDKs look at; `message` is a sentence that says what to do.
    """

    def __init__(self, status: int, error: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.retry_after = retry_after
        self.error_id: str = secrets.token_hex(8)
        """Sent with the answer and logged with it, so that one finds the other."""

    def __str__(self) -> str:
        return f"{self.status} {HTTPStatus(self.status).phrase}: {self.error}: {self.message}"

    def body(self) -> bytes:
        """The canonical error body, JSON."""
        return json.dumps(
            {"detail": {"error": self.error, "message": self.message, "error_id": self.error_id}}
        ).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Response headers, `content-length` included."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body()))]
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % self.retry_after))
        return headers


class InvalidFieldsError(ApiError):
    """422 in the list form, which the SDKs turn into their `ValidationError` (wire protocol, section 2.2)."""

    def __init__(self, details: Sequence[Detail]) -> None:
        super().__init__(422, "ValidationError", "; ".join(f"{detail.field}: {detail.message}" for detail in details))
        self.details: tuple[Detail, ...] = tuple(details)

    def body(self) -> bytes:
        return json.dumps(
            {
                "detail": [
                    {"loc": ["body", *detail.field.split(".")], "msg": detail.message, "type": "value_error"}
                    for detail in self.details
                ],
                "error_id": self.error_id,
            }
        ).encode()
