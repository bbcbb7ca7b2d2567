"""What a request of the control plane says in its path and its query."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["parameter", "query", "values"]


def parameter(request: Request, name: str) -> str:
    """A segment of the path, decoded now."""
    return unquote(request.path_params[name])


def query(request: Request) -> dict[str, str]:
    """The query's members; of a repeated one the last. `+` is a space."""
    return dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))


def values(request: Request, name: str) -> list[str]:
    """All values of one member of the query."""
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return [value for known, value in pairs if known == name]
