"""Compressing layers for a registry: one gzip stream, made by several threads."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    import threading
    from types import TracebackType
    from typing import BinaryIO

__all__ = ["GzipWriter"]

LEVEL: Final = 4
"""Twice as fast as the usual 6, for some percent more bytes."""
THREADS: Final = min(4, os.cpu_count() or 1)
BLOCK: Final = 1 << 20
"""Bytes that one thread compresses at a time."""
WINDOW: Final = 32 << 10
"""Bytes before a block that it may refer to: deflate's own window, so that blocks cost nothing in size."""
_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name and no time, so that equal layers are equal


class GzipWriter:
    """A file to be written, of which the compressed form goes to `out`.

    Equal bytes give equal ones, however many threads there are. Use it in `with`: its threads end with the block.
    Blocks; raises what `out` raises, and InterruptedError once `stop` is set.
    """

    def __init__(self, out: BinaryIO, stop: threading.Event) -> None:
        self._out = out
        self._stop = stop
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compress")
        self._pending: deque[Future[bytes]] = deque()
        self._block = bytearray()
        self._window = b""
        self._crc = 0
        self._read = 0
        self._hash = hashlib.sha256()
        self.size: int = 0
        """Compressed bytes; whole after the block."""

    def __enter__(self) -> Self:
        self._emit(_HEADER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._submit(last=True)
                self._collect(0)
                self._emit(struct.pack("<II", self._crc, self._read & 0xFFFFFFFF))
        finally:
            self._pool.shutdown(cancel_futures=True)

    @property
    def digest(self) -> str:
        """Of the compressed bytes."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Take bytes; waits while the threads have enough to do."""
        if self._stop.is_set():
            raise InterruptedError("nobody wants it any more")
        self._crc = zlib.crc32(data, self._crc)
        self._read += len(data)
        self._block += data
        while len(self._block) >= BLOCK:
            self._submit(last=False)
        return len(data)

    def _submit(self, *, last: bool) -> None:
        block = bytes(self._block if last else self._block[:BLOCK])
        del self._block[: len(block)]
        self._pending.append(self._pool.submit(_compress, block, self._window, last))
        self._window = block[-WINDOW:]
        self._collect(2 * THREADS)

    def _collect(self, left: int) -> None:
        while len(self._pending) > left:
            self._emit(self._pending.popleft().result())

    def _emit(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        self._out.write(data)


def _compress(block: bytes, window: bytes, last: bool) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=window)
    return compressor.compress(block) + compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
