"""Which part of a file a request wants (wire protocol, section 4.2). Pure: headers in, a decision out."""

from __future__ import annotations

import re

import attrs

__all__ = ["NotModified", "Part", "Unsatisfiable", "Whole", "select"]

_RANGE = re.compile(rb"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII)


@attrs.frozen
class Whole:
    """All of it: 200."""


@attrs.frozen
class Part:
    """Bytes `start` to `end`, both included: 206."""

    start: int
    end: int


@attrs.frozen
class NotModified:
    """The client has it already: 304."""


@attrs.frozen
class Unsatisfiable:
    """The range begins behind the end: 416."""


def select(
    size: int, etag: bytes, *, range: bytes | None, if_range: bytes | None, if_none_match: bytes | None
) -> Whole | Part | NotModified | Unsatisfiable:
    """Decide what to send of a file of `size` bytes with this strong validator.

    `If-None-Match` goes first. A range that is malformed or has several parts is ignored, as is one whose `If-Range`
    is not `etag`.
    """
    if if_none_match is not None:
        tags = [tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")]
        if b"*" in tags or etag in tags:
            return NotModified()
    if range is None or (if_range is not None and if_range.strip() != etag):
        return Whole()
    match = _RANGE.fullmatch(range.strip())
    if match is None:
        return Whole()
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return Whole()
    elif last:
        start, end = max(0, size - int(last)), size - 1
    else:
        return Whole()
    return Part(start, end) if start < size and start <= end else Unsatisfiable()
