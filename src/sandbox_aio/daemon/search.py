"""Glob and grep (wire protocol, section 4.3; section 9.3, C8 to C12)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import fnmatch
import io
import os
import re
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from .faults import Fault
from .paths import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .http import Exchange
    from .settings import DaemonSettings

__all__ = ["Pattern", "Search", "grep_file", "walk"]

_Match: TypeAlias = dict[str, object]

_JSON_BYTES = 64 * 1024
_LINE_BYTES = 1 << 20
_PROBE_BYTES = 8 * 1024
_TEXT_CHARACTERS = 2000


class Exhausted(Exception):
    """The search took too long, found too much, or nobody waits for it any more."""


class Pattern:
    """A glob over the segments of a relative path: `**` is any number of them; `*`, `?` and `[...]` stay within one.

    A state is the set of positions in the pattern that a path so far may have reached.
    """

    def __init__(self, pattern: str) -> None:
        self._segments = [
            None if segment == "**" else re.compile(fnmatch.translate(segment))
            for segment in pattern.split("/")
            if segment not in ("", ".")
        ]
        self.start: frozenset[int] = self._spread({0})

    def advance(self, state: frozenset[int], name: str) -> frozenset[int]:
        """Return the state after one more segment; it is empty when nothing below can match."""
        after = set()
        for position in state:
            if position < len(self._segments):
                segment = self._segments[position]
                if segment is None:
                    after.add(position)
                elif segment.match(name):
                    after.add(position + 1)
        return self._spread(after)

    def matches(self, state: frozenset[int]) -> bool:
        """Whether a path that led to this state matches."""
        return len(self._segments) in state

    def _spread(self, positions: set[int]) -> frozenset[int]:
        for position in sorted(positions):
            while position < len(self._segments) and self._segments[position] is None:
                position += 1
                positions.add(position)
        return frozenset(positions)


@attrs.define
class _Budget:
    """What a search may still use. One thread uses it; another may set `cancelled`."""

    results: int
    bytes: int
    until: float
    cancelled: threading.Event = attrs.field(factory=threading.Event)

    def check(self) -> None:
        """Raise Exhausted if the search is to end."""
        if self.cancelled.is_set() or time.monotonic() > self.until:
            raise Exhausted

    def spend(self, match: _Match, size: int, matches: list[_Match]) -> None:
        """Add a match of about this size, or raise Exhausted if there is no room for it."""
        self.bytes -= size
        if self.bytes < 0 or len(matches) >= self.results:
            raise Exhausted
        matches.append(match)


def walk(root: str, pattern: Pattern, check: Callable[[], None]) -> Iterator[os.DirEntry[str]]:
    """Yield what matches below `root`, in the lexical order of paths. Symlinks are not followed; what is forbidden is
    passed over.
    """
    pending: list[Iterator[tuple[os.DirEntry[str], frozenset[int], bool]]] = [
        _list(root, pattern, pattern.start, check)
    ]
    while pending:
        check()
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
            continue
        entry, state, descend = step
        if descend:
            pending.append(_list(entry.path, pattern, state, check))
        else:
            yield entry


def _list(
    path: str, pattern: Pattern, state: frozenset[int], check: Callable[[], None]
) -> Iterator[tuple[os.DirEntry[str], frozenset[int], bool]]:
    """Yield the steps of one directory: an entry that matches, or one to descend into, which sorts as its name and a
    slash.
    """
    steps = []
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            check()
            after = pattern.advance(state, entry.name)
            if not after:
                continue
            if pattern.matches(after):
                steps.append((entry.name, entry, after, False))
            if entry.is_dir(follow_symlinks=False):
                steps.append((entry.name + "/", entry, after, True))
    steps.sort(key=lambda step: step[0])
    return iter([(entry, after, descend) for _, entry, after, descend in steps])


def grep_file(path: str, needle: bytes, check: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that holds `needle`. A binary, special or forbidden file has none.

    Lines are read in pieces of at most 1 MiB, and their text is cut at 2000 characters.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    with io.BufferedReader(io.FileIO(fd), 1 << 16) as file, contextlib.suppress(OSError):
        if not stat.S_ISREG(os.fstat(fd).st_mode) or b"\0" in file.peek(_PROBE_BYTES)[:_PROBE_BYTES]:
            return
        number, begin, overlap, found = 1, b"", b"", False
        while piece := file.readline(_LINE_BYTES):
            if number % 1024 == 1:
                check()
            begin = begin or piece
            found = found or needle in overlap + piece
            if piece.endswith(b"\n") or len(piece) < _LINE_BYTES:
                if found:
                    yield (
                        number,
                        begin.rstrip(b"\r\n")[: 4 * _TEXT_CHARACTERS].decode("utf-8", "replace")[:_TEXT_CHARACTERS],
                    )
                number, begin, overlap, found = number + 1, b"", b"", False
            else:
                check()
                overlap = piece[len(piece) - len(needle) + 1 :]


class Search:
    """Serves `/glob` and `/grep`, in a few threads of its own that start when they are first needed."""

    def __init__(self, settings: DaemonSettings) -> None:
        self._settings = settings
        self._threads = concurrent.futures.ThreadPoolExecutor(settings.limits.search_threads, "search")

    async def glob(self, exchange: Exchange) -> None:
        """Reply with what matches `pattern` below the directory `path`.

        Raises:
            Fault: 404 if there is no such directory; 400 if the request makes no sense.
        """
        body = await exchange.json(_JSON_BYTES)
        pattern, root, budget = self._read(body)
        if not os.path.isdir(root):  # noqa: ASYNC240
            raise Fault(404, "FileNotFound", f"there is no directory {root}")
        await self._run(exchange, budget, lambda matches: self._glob(matches, root, Pattern(pattern), budget))

    async def grep(self, exchange: Exchange) -> None:
        """Reply with the lines that hold the text `pattern`, in the file `path` or the files below it.

        Raises:
            Fault: 404 if there is no such file or directory; 400 if the request makes no sense.
        """
        body = await exchange.json(_JSON_BYTES)
        needle, root, budget = self._read(body)
        only = body.get("glob")
        if only is not None and not isinstance(only, str):
            raise Fault(400, "InvalidRequest", "glob must be a text")
        if not os.path.exists(root):  # noqa: ASYNC240
            raise Fault(404, "FileNotFound", f"there is no file or directory {root}")
        only = only or "**"
        pattern = Pattern(only if "/" in only or "**" in only else "**/" + only)
        try:
            encoded = needle.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise Fault(400, "InvalidRequest", "pattern is not valid text") from None
        await self._run(exchange, budget, lambda matches: self._grep(matches, root, pattern, encoded, budget))

    def _read(self, body: dict[str, Any]) -> tuple[str, str, _Budget]:
        pattern, limit = body.get("pattern"), body.get("limit")
        limits = self._settings.limits
        if not isinstance(pattern, str) or not pattern:
            raise Fault(400, "InvalidRequest", "pattern must be a text that is not empty")
        if limit is None:
            limit = limits.search_results
        if type(limit) is not int or limit < 1:
            raise Fault(400, "InvalidRequest", "limit must be a positive whole number")
        root = resolve(self._settings, body.get("path"), "InvalidRequest")
        budget = _Budget(
            min(limit, limits.search_results_max), limits.search_bytes, time.monotonic() + limits.search_seconds
        )
        return pattern, os.path.normpath(root), budget

    async def _run(self, exchange: Exchange, budget: _Budget, search: Callable[[list[_Match]], None]) -> None:
        matches: list[_Match] = []

        def complete() -> bool:
            try:
                search(matches)
            except Exhausted:
                return False
            return True

        try:
            whole = await asyncio.get_running_loop().run_in_executor(self._threads, complete)
        finally:
            budget.cancelled.set()
        await exchange.reply(200, {"matches": matches, "truncated": not whole})

    def _glob(self, matches: list[_Match], root: str, pattern: Pattern, budget: _Budget) -> None:
        for entry in walk(root, pattern, budget.check):
            with contextlib.suppress(OSError, ValueError, OverflowError):  # it is gone already, or from another age
                budget.spend(_describe(entry), len(entry.path), matches)

    def _grep(self, matches: list[_Match], root: str, pattern: Pattern, needle: bytes, budget: _Budget) -> None:
        paths: Iterator[str] = iter([os.path.realpath(root)])
        if os.path.isdir(root):
            found = walk(root, pattern, budget.check)
            paths = (entry.path for entry in found if entry.is_file(follow_symlinks=False))
        for path in paths:
            for number, text in grep_file(path, needle, budget.check):
                budget.spend({"path": path, "line": number, "text": text}, len(path) + len(text), matches)


def _describe(entry: os.DirEntry[str]) -> _Match:
    """Return a match of a glob. A symlink is described as what it leads to, or as itself if that is nothing."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        status = entry.stat(follow_symlinks=False)
    modified = datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC)
    return {
        "path": entry.path,
        "is_dir": stat.S_ISDIR(status.st_mode),
        "size_bytes": status.st_size,
        "modified_at": modified.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
