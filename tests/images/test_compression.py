"""Compressed archives: what they may be, and what is said of those that are not whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import zstandard

from sandbox_aio.images.compression import CHUNK, MAGIC, StoppableReader, TarStream, is_compressed
from sandbox_aio.images.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT = bytes(range(256)) * 20_000


def read_all(data: bytes, max_bytes: int = 1 << 26) -> tuple[bytes, str]:
    with TarStream(io.BytesIO(data), name="it", max_bytes=max_bytes) as stream:
        found = b"".join(iter(lambda: stream.read_some(CHUNK), b""))
        return found, stream.digest


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A53, 5) + b"hello" + data


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "zstd in frames": lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    "zstd behind a frame to skip": lambda data: skippable(zstandard.compress(data)),
    "zstd without its length": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form: str) -> None:
    data = FORMS[form](CONTENT)
    assert read_all(data) == (CONTENT, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert is_compressed(data[:MAGIC]) == (form != "plain")


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_what_is_cut_or_goes_on_is_refused(form: str) -> None:
    data = FORMS[form](CONTENT)
    for wrong in (data[:-3], data[: len(data) // 2], data + b"garbage"):
        with pytest.raises(ImageError, match=r"^it: .*(ends in the middle|cannot be decompressed)"):
            read_all(wrong)


@pytest.mark.parametrize("form", FORMS)
def test_no_more_than_there_is_room_for(form: str) -> None:
    with pytest.raises(ImageError, match="more than the 1,000 bytes") as caught:
        read_all(FORMS[form](CONTENT), max_bytes=1000)
    assert caught.value.kind == "ImageTooLarge"


def test_a_window_that_wants_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    writer = compressor.compressobj()
    with pytest.raises(ImageError, match="cannot be decompressed"):
        read_all(writer.compress(CONTENT) + writer.flush())


def test_without_zstandard_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImageError, match=r"pip install 'sandbox-aio\[zstd\]'") as caught:
        read_all(zstandard.compress(CONTENT))
    assert caught.value.kind == "ImageUnpack"


def test_a_reader_that_stops_in_the_middle_leaves_no_thread() -> None:
    before = threading.active_count()
    with TarStream(io.BytesIO(gzip.compress(bytes(64 << 20))), name="it", max_bytes=1 << 30) as stream:
        assert stream.read(3) == bytes(3)
    assert threading.active_count() == before


def test_a_source_that_is_stopped() -> None:
    stop = threading.Event()
    reader = StoppableReader(io.BytesIO(CONTENT), stop)
    assert reader.read(3) == CONTENT[:3]
    stop.set()
    with pytest.raises(ImageError, match="not wanted any more"):
        reader.read(3)


def test_what_its_source_raises_is_said() -> None:
    class Broken:
        def read(self, size: int, /) -> bytes:
            raise OSError("the disk is gone")

    with TarStream(Broken(), name="it", max_bytes=1) as stream, pytest.raises(ImageError, match="the disk is gone"):
        stream.read(1)
