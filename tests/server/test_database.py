"""The database: order, group commit, failure, versions, and a process that is killed while it writes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.server import database as module
from sandbox_aio.server.database import MIGRATIONS, Database, StoreError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO snapshots VALUES (?, ?)"


async def ids(database: Database) -> list[str]:
    return [row[0] for row in await database.read("SELECT id FROM snapshots ORDER BY rowid")]


async def test_what_was_written_is_read_in_its_order_also_by_the_next_one(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "server.db")
    for number in range(1000):
        database.write((INSERT, (str(number), "x")))
    assert await ids(database) == [str(number) for number in range(1000)]
    await database.aclose()
    await database.aclose()
    again = await Database.open(tmp_path / "server.db")
    assert len(await ids(again)) == 1000
    await again.aclose()
    assert (tmp_path / "server.db").stat().st_mode & 0o777 == 0o600


async def test_a_transaction_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "server.db")
    database.write((INSERT, ("a", "x")))
    await database.committed()
    database.write((INSERT, ("b", "x")), (INSERT, ("a", "twice")))
    with pytest.raises(StoreError, match="cannot be written"):
        await database.committed()
    with pytest.raises(StoreError, match="cannot be written"):
        database.write((INSERT, ("c", "x")))
    await database.aclose()
    again = await Database.open(tmp_path / "server.db")
    assert await ids(again) == ["a"]
    await again.aclose()


async def test_a_full_disk_is_an_error_and_loses_nothing_that_was_promised(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "server.db")
    await database.read("PRAGMA max_page_count = 20")
    promised = 0
    with pytest.raises(StoreError, match="full"):
        for number in range(1000):
            database.write((INSERT, (str(number), "x" * 4000)))
            await database.committed()
            promised += 1
    await database.aclose()
    again = await Database.open(tmp_path / "server.db")
    assert await ids(again) == [str(number) for number in range(promised)]
    await again.aclose()


async def test_a_queue_that_is_full_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    database = await Database.open(None)
    blocking = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3000000) SELECT count(*) FROM n"
    )
    reading = asyncio.create_task(database.read(blocking))
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="wait for the disk"):
        for number in range(1000):
            database.write((INSERT, (str(number), "x")))
    assert await reading == [(3_000_000,)]
    await database.aclose()


async def test_one_in_memory_is_its_own(tmp_path: Path) -> None:
    first, second = await Database.open(None), await Database.open(None)
    first.write((INSERT, ("a", "x")))
    assert (await ids(first), await ids(second)) == (["a"], [])
    await first.aclose()
    await second.aclose()


async def test_one_that_another_process_uses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY", 0.1)
    first = await Database.open(tmp_path / "server.db")
    with pytest.raises(StoreError, match="another server uses it"):
        await Database.open(tmp_path / "server.db")
    await first.aclose()


@pytest.mark.parametrize("damage", ["garbage", "newer"])
async def test_one_that_cannot_be_understood_is_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "server.db"
    if damage == "garbage":
        path.write_bytes(b"not a database at all" * 1000)
    else:
        with sqlite3.connect(path) as newer:
            newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        newer.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"not a database|newer one"):
        await Database.open(path)
    assert path.read_bytes() == before


WRITER = f"""
import asyncio, sys
from pathlib import Path
from sandbox_aio.server.database import Database

async def main():
    database = await Database.open(Path(sys.argv[1]))
    number = len(await database.read("SELECT id FROM snapshots"))
    while True:
        database.write(({INSERT!r}, (f"{{number}}a", "x")), ({INSERT!r}, (f"{{number}}b", "x")))
        await database.committed()
        number += 2
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("round", range(5))
def test_a_writer_that_is_killed_keeps_its_promises(tmp_path: Path, round: int) -> None:
    path = tmp_path / "server.db"
    for pause in (0.0, 0.01 * round, 0.05):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(pause)
            os.kill(writer.pid, signal.SIGKILL)
            promised = int(([*writer.stdout.read().split()] or ["2"])[-1])
        with sqlite3.connect(path) as reader:
            (count,) = reader.execute("SELECT count(*) FROM snapshots").fetchone()
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        reader.close()
        assert count >= promised
        assert count % 2 == 0
