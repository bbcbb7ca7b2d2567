"""Which part of a collection a list answer holds, and in which order. Wire protocol, sections 1.8, 1.10 and 1.15."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, Protocol, TypeVar

import attrs

from .errors import ApiError

__all__ = ["Page", "SortKey", "has_labels", "ordering", "paginate"]

Item = TypeVar("Item")

DEFAULT_SIZE: Final = 50
UNPAGED_SIZE: Final = 500
"""For a client that names no paging parameter, which may be one that cannot page (wire protocol, section 9.2, B19)."""
MAX_SIZE: Final = 500

SortKey = tuple[str | int, str]
"""What items are ordered by, and the item's id, which makes the order total."""


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


Identified = TypeVar("Identified", bound=_Identified)


@attrs.frozen(kw_only=True)
class Page(Generic[Item]):
    """One answer's items. `next_cursor` is None and `next_offset` 0 after the last."""

    items: Sequence[Item]
    next_cursor: str | None
    next_offset: int


def has_labels(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    """Whether there is each of the labels that a query names, as `key` or as `key=value`."""
    for label in wanted:
        key, equals, value = label.partition("=")
        has = labels.get(key)
        if has is None or (equals and has != value):
            return False
    return True


def ordering(
    query: Mapping[str, str], keys: Mapping[str, Callable[[Identified], str | int]], *, by: str
) -> tuple[Callable[[Identified], SortKey], bool]:
    """How to sort by `by`, which the query names or does not, and whether downwards, as it does unless it says.

    Raises ApiError 400.
    """
    if by not in keys:
        raise ApiError(400, "InvalidRequest", f"sort_by must be one of {', '.join(keys)}")
    order = query.get("sort_order") or query.get("sort_direction") or "desc"
    if order not in ("asc", "desc"):
        raise ApiError(400, "InvalidRequest", "sort_order must be asc or desc")
    value = keys[by]
    return lambda item: (value(item), item.id), order == "desc"


def paginate(
    items: Iterable[Item], query: Mapping[str, str], *, key: Callable[[Item], SortKey], descending: bool
) -> Page[Item]:
    """The page that the query names by `page_size` and `cursor`, or by `limit` and `offset`.

    A cursor is a position in the order, so inserting and deleting elsewhere does not move it. Raises ApiError 400.
    """
    ordered = sorted(items, key=key, reverse=descending)
    size = _whole(query, "page_size", _whole(query, "limit", _default_size(query), low=1), low=1)
    size = min(size, MAX_SIZE)
    first = _whole(query, "offset", 0, low=0)
    if cursor := query.get("cursor"):
        after = _decode(cursor)
        keys = [key(item) for item in ordered]
        try:
            passed = [other >= after if descending else other <= after for other in keys]
        except TypeError:
            raise _bad_cursor() from None
        first = sum(passed)
    chosen = ordered[first : first + size]
    more = first + len(chosen) < len(ordered)
    return Page(
        items=chosen,
        next_cursor=_encode(key(chosen[-1])) if chosen and more else None,
        next_offset=first + len(chosen) if more else 0,
    )


def _default_size(query: Mapping[str, str]) -> int:
    return DEFAULT_SIZE if query.keys() & {"cursor", "offset"} else UNPAGED_SIZE


def _whole(query: Mapping[str, str], name: str, default: int, *, low: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= low):
        raise ApiError(400, "InvalidRequest", f"{name} must be a whole number of at least {low}")
    return int(text)


def _encode(position: SortKey) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def _decode(cursor: str) -> SortKey:
    try:
        value, id = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (ValueError, TypeError):
        raise _bad_cursor() from None
    return value, id


def _bad_cursor() -> ApiError:
    return ApiError(400, "InvalidRequest", "the cursor is not one of this server's; begin again without it")
