"""Layers compressed by several threads, as other programs read them."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import subprocess
import threading

import pytest

from sandbox_aio.images import gzip_writer
from sandbox_aio.images.compression import TarStream
from sandbox_aio.images.gzip_writer import BLOCK, GzipWriter

CHANCE = random.Random(5)
WORDS = [CHANCE.randbytes(9).hex().encode() for _ in range(500)]


def text(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += CHANCE.choice(WORDS)
    return bytes(data[:size])


def compress(data: bytes, step: int = 1 << 30) -> tuple[bytes, GzipWriter]:
    out = io.BytesIO()
    with GzipWriter(out, threading.Event()) as writer:
        for begin in range(0, len(data), step):
            assert writer.write(data[begin : begin + step]) == len(data[begin : begin + step])
    return out.getvalue(), writer


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 77])
def test_every_reader_reads_it(size: int) -> None:
    data = text(size)
    compressed, writer = compress(data, 100_003)
    assert gzip.decompress(compressed) == data
    assert subprocess.run(["gzip", "-dc"], input=compressed, capture_output=True, check=True).stdout == data
    with TarStream(io.BytesIO(compressed), name="it", max_bytes=size + 1) as stream:
        assert stream.read(size + 1) == data
    assert (writer.size, writer.digest) == (len(compressed), f"sha256:{hashlib.sha256(compressed).hexdigest()}")


def test_equal_bytes_give_equal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    data = text(4 * BLOCK + 5)
    results = set()
    for threads, step in ((1, 4096), (2, 1 << 30), (7, BLOCK)):
        monkeypatch.setattr(gzip_writer, "THREADS", threads)
        results.add(compress(data, step)[0])
    assert len(results) == 1


def test_blocks_cost_next_to_nothing_in_size() -> None:
    data = text(6 * BLOCK)
    assert len(compress(data)[0]) < len(gzip.compress(data, gzip_writer.LEVEL)) * 1.01


def test_one_that_nobody_wants_any_more_stops() -> None:
    stop = threading.Event()
    before = threading.active_count()
    with pytest.raises(InterruptedError), GzipWriter(io.BytesIO(), stop) as writer:
        writer.write(bytes(10 * BLOCK))
        stop.set()
        writer.write(b"more")
    assert threading.active_count() == before


def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        with GzipWriter(full, threading.Event()) as writer:
            writer.write(text(4 * BLOCK))
