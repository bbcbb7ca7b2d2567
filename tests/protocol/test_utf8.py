"""`protocol/utf8.py`: bytes cut anywhere become the same text (wire protocol, section 3.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.utf8 import Utf8Transcoder, cut, repair_surrogates
from tests.strategies import almost_utf8, in_pieces, texts, wild_texts


@given(st.data(), almost_utf8() | st.binary(max_size=200))
def test_transcoder_replaces_as_python_does_however_the_bytes_are_cut(draw: st.DataObject, data: bytes) -> None:
    transcoder = Utf8Transcoder()
    parts = [transcoder.feed(piece) for piece in draw.draw(in_pieces(data))]
    for part in parts:
        part.decode()  # whole characters, always
    assert len(data.decode("utf-8", "replace").encode()) - len(b"".join(parts)) <= 3
    assert b"".join([*parts, transcoder.finish()]) == data.decode("utf-8", "replace").encode()


@pytest.mark.parametrize("tail", [b"\xc3", b"\xe2\x82", b"\xf0\x9d\x84"])
def test_the_beginning_of_a_character_is_held_back(tail: bytes) -> None:
    transcoder = Utf8Transcoder()
    assert transcoder.feed(b"a" + tail) == b"a"
    assert transcoder.finish() == "\ufffd".encode()


def test_ascii_after_the_beginning_of_a_character_completes_nothing() -> None:
    transcoder = Utf8Transcoder()
    assert transcoder.feed(b"\xe2\x82") == b""
    assert transcoder.feed(b"ok") == "\ufffdok".encode()
    assert transcoder.finish() == b""


def test_a_finished_transcoder_begins_anew() -> None:
    transcoder = Utf8Transcoder()
    transcoder.feed(b"\xf0\x9d")
    transcoder.finish()
    assert transcoder.feed(b"\x84\x9e") == "\ufffd\ufffd".encode()
    assert transcoder.finish() == b""


@given(texts(), st.integers(0, 100), st.sampled_from([bytes, bytearray, memoryview]))
def test_cut_is_the_longest_prefix_of_whole_characters(text: str, limit: int, kind: type[bytes]) -> None:
    data = text.encode()
    size = cut(kind(data), limit)
    assert data[:size].decode() + data[size:].decode() == text
    assert size <= limit
    assert size > limit - 4 or size == len(data)


def test_cut_returns_nothing_if_the_first_character_is_too_long() -> None:
    assert [cut("𝄞".encode(), limit) for limit in range(6)] == [0, 0, 0, 0, 4, 4]
    assert cut(b"", 0) == 0


@given(wild_texts())
def test_repaired_text_can_be_sent_and_keeps_its_length_in_bytes(text: str) -> None:
    repaired = repair_surrogates(text)
    assert repaired.encode() == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode() or (
        "\ud800\udfff" in text
    )
    assert len(repaired.encode()) == len(text.encode("utf-8", "surrogatepass"))


def test_repair_replaces_each_half() -> None:
    assert repair_surrogates("a\ud800\udc00é\udfff") == "a\ufffd\ufffdé\ufffd"
