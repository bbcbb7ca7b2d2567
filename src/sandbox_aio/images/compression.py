"""A compressed layer as a stream of the tar archive in it, decompressed and hashed in a thread of its own.

What it was compressed with shows in its first bytes: gzip, zstd, or nothing. Whoever reads gets no more than the bound
it gave, however small the compressed bytes are.
"""

from __future__ import annotations

import hashlib
import importlib
import queue
import secrets
import threading
import zlib
from typing import TYPE_CHECKING, Final, Protocol, Self

from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["CHUNK", "MAGIC", "Reader", "StoppableReader", "TarStream", "is_compressed"]

CHUNK: Final = 1 << 20
"""Bytes that are decompressed at once."""
MEMBER: Final = 1 << 14
"""Bytes that the next part of a gzip archive is given at first: what it does not need is copied."""
QUEUE: Final = 4
"""Chunks that wait to be read."""
MAGIC: Final = 4
"""Bytes that show how something is compressed."""
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""Behind a first byte of 0x50 to 0x5f: a frame that says something of the next ones."""
_ZSTD_WINDOW: Final = 1 << 27
"""Bytes of memory that a zstd frame may ask for."""
_MARK: Final = 16
"""Bytes by which the end of a zstd archive is recognized."""


class Reader(Protocol):
    """Anything that bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


class StoppableReader:
    """A source that ends with an ImageError as soon as `stop` is set, which nobody waits to see."""

    def __init__(self, source: Reader, stop: threading.Event) -> None:
        self._source = source
        self._stop = stop

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes."""
        if self._stop.is_set():
            raise ImageError("it is not wanted any more", kind="ImageUnpack")
        return self._source.read(size)


def is_compressed(first: bytes) -> bool:
    """Whether what begins with these `MAGIC` bytes must be decompressed."""
    return first.startswith(_GZIP) or _is_zstd(first)


def _is_zstd(first: bytes) -> bool:
    return first.startswith(_ZSTD) or (first[1:4] == _ZSTD_SKIPPABLE and first[0] & 0xF0 == 0x50)


class TarStream:
    """The archive in `source`, to be read from its begin to its end: `read`, `tell`, and `seek` forwards.

    Use it in `with`: its thread ends with the block. Raises ImageError for what is not compressed well, for more than
    `max_bytes`, and for what `source` raises as OSError.
    """

    def __init__(self, source: Reader, *, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._source = source
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(QUEUE)
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._produce, name="decompress", daemon=True)
        self._ended = threading.Event()
        self._chunk = b""
        self._at = 0
        self._position = 0
        self._exhausted = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    @property
    def digest(self) -> str:
        """The digest of the whole archive, once it was read to its end."""
        assert self._exhausted
        return f"sha256:{self._digest.hexdigest()}"

    def read(self, size: int) -> bytes:
        """Return so many bytes, fewer only at the end."""
        end = self._at + size
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            self._position += size
            return data
        pieces = []
        while size > 0 and (piece := self.read_some(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_some(self, size: int) -> bytes:
        """Return at least one byte and at most so many, none at the end: as they lie there, without putting pieces
        together.
        """
        if self._at == len(self._chunk) and not self._next_chunk():
            return b""
        data = self._chunk[self._at : self._at + size]
        self._at += len(data)
        self._position += len(data)
        return data

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seek(self, position: int) -> int:
        """Skip forwards."""
        if position < self._position:
            raise ImageError(f"{self._name}: the archive points backwards", kind="ImageUnpack")
        while self._position < position and self.read_some(position - self._position):
            pass
        return self._position

    def finish(self) -> None:
        """Read to the end, where nothing but zeros may be left."""
        while piece := self.read_some(CHUNK):
            if piece.count(0) != len(piece):
                raise ImageError(f"{self._name}: there is something behind the end of the archive", kind="ImageUnpack")

    def _next_chunk(self) -> bool:
        if self._exhausted:
            return False
        got = self._queue.get()
        if isinstance(got, BaseException):
            self._exhausted = True
            raise got
        if got is None:
            self._exhausted = True
            return False
        self._chunk, self._at = got, 0
        return True

    # The thread.

    def _produce(self) -> None:
        try:
            total = 0
            for chunk in self._decompressed():
                total += len(chunk)
                if total > self._max_bytes:
                    raise ImageError(
                        f"{self._name}: it unpacks to more than the {self._max_bytes:,} bytes that there is room for",
                        kind="ImageTooLarge",
                    )
                self._digest.update(chunk)
                if not self._put(chunk):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error if isinstance(error, ImageError) else self._failure(error))

    def _failure(self, error: BaseException) -> ImageError:
        return ImageError(f"{self._name}: it cannot be decompressed: {error}", kind="ImageUnpack")

    def _put(self, item: bytes | BaseException | None) -> bool:
        while not self._ended.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _decompressed(self) -> Iterator[bytes]:
        first = self._source.read(CHUNK)
        if first.startswith(_GZIP):
            return self._gunzip(first)
        if _is_zstd(first):
            return self._unzstd(first)
        return self._plain(first)

    def _plain(self, first: bytes) -> Iterator[bytes]:
        chunk = first
        while chunk:
            yield chunk
            chunk = self._source.read(CHUNK)

    def _gunzip(self, first: bytes) -> Iterator[bytes]:
        source, window = _Source(first, self._source), CHUNK
        member, data = zlib.decompressobj(wbits=31), source.read(window)
        while not self._ended.is_set():
            if chunk := member.decompress(data, CHUNK):
                yield chunk
            data = member.unconsumed_tail
            if member.eof:
                source.unread(len(member.unused_data))
                member, window = zlib.decompressobj(wbits=31), MEMBER
                while not data:  # There may be zeros between the parts, and at the end.
                    if not (piece := source.read(window)):
                        return
                    data = piece.lstrip(b"\0")
            elif not data:
                window = min(2 * window, CHUNK)
                if not (data := source.read(window)):
                    raise ImageError(f"{self._name}: it ends in the middle", kind="ImageUnpack")

    def _unzstd(self, first: bytes) -> Iterator[bytes]:
        try:
            zstandard = importlib.import_module("zstandard")
        except ModuleNotFoundError:
            message = f"{self._name}: it is compressed with zstd, which needs: pip install 'sandbox-aio[zstd]'"
            raise ImageError(message, kind="ImageUnpack") from None
        try:
            # The reader does not tell an end from a cut. So a frame with a mark in it is read behind the last one: a
            # frame that was cut would take it for its own rest.
            mark = secrets.token_bytes(_MARK)
            source = _Source(first, _Followed(self._source, zstandard.ZstdCompressor().compress(mark)))
            reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
                source, read_across_frames=True, read_size=CHUNK
            )
            held = b""
            while chunk := reader.read(CHUNK):
                chunk = held + chunk
                held = chunk[-_MARK:]
                yield chunk[:-_MARK]
            if held != mark:
                raise ImageError(f"{self._name}: it ends in the middle", kind="ImageUnpack")
        except zstandard.ZstdError as error:
            raise self._failure(error) from error


class _Followed:
    """A source, and something behind its end."""

    def __init__(self, source: Reader, end: bytes) -> None:
        self._source = source
        self._end = end

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        if not data:
            data, self._end = self._end, b""
        return data


class _Source:
    """What was read already, and then the rest, read in large pieces and given in any."""

    def __init__(self, first: bytes, rest: Reader) -> None:
        self._piece = first
        self._at = 0
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """Return at least one byte and at most so many, none at the end."""
        if self._at == len(self._piece):
            self._piece, self._at = self._rest.read(CHUNK), 0
        data = self._piece[self._at : self._at + size]
        self._at += len(data)
        return data

    def unread(self, size: int) -> None:
        """Give the end of what the last `read` returned again."""
        self._at -= size
