"""What the server must not forget: one SQLite file, written by one thread.

The server keeps its working set in memory, changes it first, and writes the change behind it: transactions are
committed in the order in which they were written, several at once where they wait. Before an answer promises
something, `committed` waits until everything written so far is in the file. WAL with `synchronous=NORMAL` keeps every
commit across a kill of the process; when the machine loses power, the last ones may be lost, and the file is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Database", "StoreError"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

MAX_WAITING: Final = 10_000
"""Transactions that wait to be written."""
BUSY: Final = 2.0
"""Seconds that a lock of another process is waited for."""

MIGRATIONS: Final = (
    (
        "CREATE TABLE sandboxes (id TEXT PRIMARY KEY, host_id TEXT, lease_until REAL, record BLOB NOT NULL)",
        "CREATE TABLE snapshots (id TEXT PRIMARY KEY, record TEXT NOT NULL)",
        "CREATE TABLE tags (name TEXT NOT NULL, tag TEXT NOT NULL, snapshot_id TEXT NOT NULL, PRIMARY KEY (name, tag))",
        "CREATE TABLE registries (id TEXT PRIMARY KEY, record TEXT NOT NULL)",
    ),
)
"""What makes each version of the file from the one before. Never changed, only added to."""

Statement = tuple[str, Sequence[Any]]
"""SQL and its parameters."""


class StoreError(Exception):
    """The database cannot be used; the message says why and what to do."""


class _End:
    pass


class Database:
    """The file at `path`, or one in memory that ends with the process. Made by `open`, ended by `aclose`."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._queue: queue.Queue[Sequence[Statement] | _Ask | _End] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._work, name="database", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: StoreError | None = None
        self._connection: sqlite3.Connection | None = None

    @classmethod
    async def open(cls, path: Path | None) -> Database:
        """Open the file, or make it, and bring it to this version.

        Raises StoreError for a file that is damaged, of a newer version, or used by another process.
        """
        database = cls(path)
        database._loop = asyncio.get_running_loop()
        database._connection = await asyncio.to_thread(_connect, path)
        database._thread.start()
        return database

    def write(self, *statements: Statement) -> None:
        """Queue a transaction. Raises StoreError if an earlier one failed, and when too many wait."""
        if self._failure is not None:
            raise self._failure
        try:
            self._queue.put_nowait(statements)
        except queue.Full:
            raise StoreError(f"{MAX_WAITING} changes wait for the disk: it is too slow, or hangs") from None

    async def committed(self) -> None:
        """Wait until everything written before is in the file. Raises StoreError if it could not be."""
        await self._ask(None)

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query, as of everything written before. Raises StoreError."""
        return await self._ask((sql, parameters))

    async def aclose(self) -> None:
        """Write what waits, and close the file. Closing again does nothing."""
        if self._thread.is_alive():
            await asyncio.to_thread(self._queue.put, _End())
            await asyncio.to_thread(self._thread.join)

    async def _ask(self, query: Statement | None) -> list[tuple[Any, ...]]:
        if self._failure is not None:
            raise self._failure
        assert self._loop is not None
        ask = _Ask(query, self._loop.create_future())
        try:
            self._queue.put_nowait(ask)
        except queue.Full:
            raise StoreError(f"{MAX_WAITING} changes wait for the disk: it is too slow, or hangs") from None
        return await ask.answer

    # The thread.

    def _work(self) -> None:
        assert self._connection is not None
        with contextlib.closing(self._connection):
            while True:
                batch = [self._queue.get()]
                with contextlib.suppress(queue.Empty):
                    while len(batch) < MAX_WAITING:
                        batch.append(self._queue.get_nowait())
                self._commit([item for item in batch if not isinstance(item, _Ask | _End)])
                for item in batch:
                    if isinstance(item, _Ask):
                        self._answer(item)
                if any(isinstance(item, _End) for item in batch):
                    return

    def _commit(self, transactions: Sequence[Sequence[Statement]]) -> None:
        assert self._connection is not None
        if not transactions or self._failure is not None:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for statements in transactions:
                for sql, parameters in statements:
                    self._connection.execute(sql, parameters)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            logger.error("the database %s cannot be written, and is not from now on: %s", self._path, error)
            self._failure = StoreError(f"the server's database cannot be written: {error}; mend that and start it anew")
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _answer(self, ask: _Ask) -> None:
        assert self._connection is not None
        rows: list[tuple[Any, ...]] = []
        failure = self._failure
        if ask.query is not None and failure is None:
            try:
                rows = self._connection.execute(*ask.query).fetchall()
            except sqlite3.Error as error:
                failure = StoreError(f"the server's database cannot be read: {error}")
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The loop has ended, and with it whoever asked.
            self._loop.call_soon_threadsafe(ask.settle, rows, failure)


class _Ask:
    """A question, which is answered when all that was written before it is committed."""

    def __init__(self, query: Statement | None, answer: asyncio.Future[list[tuple[Any, ...]]]) -> None:
        self.query = query
        self.answer = answer

    def settle(self, rows: list[tuple[Any, ...]], failure: StoreError | None) -> None:
        """Give the answer, in the event loop."""
        if self.answer.done():
            return
        if failure is not None:
            self.answer.set_exception(failure)
        else:
            self.answer.set_result(rows)


def _connect(path: Path | None) -> sqlite3.Connection:
    name = ":memory:" if path is None else str(path)
    if path is not None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # It holds secrets.
    connection = sqlite3.connect(name, timeout=BUSY, isolation_level=None, check_same_thread=False)
    try:
        version = _version(connection, name)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, version)
    except sqlite3.Error as error:
        connection.close()
        hint = "another server uses it" if "locked" in str(error) else "restore it from a copy, or move it away"
        raise StoreError(f"the database {name} cannot be opened: {error}; {hint}") from error
    except StoreError:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection, name: str) -> int:
    version: int
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the database {name} is of version {version}, and this server knows {len(MIGRATIONS)}: it was used by a "
            "newer one; install that, or choose another --state-dir"
        )
    return version


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
