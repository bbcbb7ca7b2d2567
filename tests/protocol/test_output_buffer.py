"""What a buffer of output keeps, what it forgets, and where it cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.output_buffer import OutputBuffer

TEXT = st.text(st.sampled_from("ab\u00e9\u20ac\U0001f600\0\n"), max_size=40).map(str.encode)
LARGEST_BLOCK = 256 * 1024


def read_all(buffer: OutputBuffer, offset: int, limit: int) -> tuple[int, bytes]:
    """Read until there is nothing, as a reader does; return where it began and what it got."""
    first, data = buffer.read(offset, limit)
    parts, position = [data], first + len(data)
    while data:
        offset, data = buffer.read(position, limit)
        assert offset == position
        parts.append(data)
        position += len(data)
    return first, b"".join(parts)


def test_a_capacity_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        OutputBuffer(0)


def test_an_empty_buffer_begins_and_ends_at_zero() -> None:
    buffer = OutputBuffer(10)

    assert (buffer.start, buffer.end, len(buffer)) == (0, 0, 0)
    assert buffer.read(0, 4) == (0, b"")


def test_an_empty_append_changes_nothing() -> None:
    buffer = OutputBuffer(10)

    buffer.append(b"")

    assert buffer.end == 0


@given(st.lists(TEXT, max_size=30), st.integers(1, 64), st.integers(4, 64), st.data())
def test_what_is_read_is_what_was_appended(pieces: list[bytes], capacity: int, limit: int, data: st.DataObject) -> None:
    buffer = OutputBuffer(capacity)
    for piece in pieces:
        buffer.append(piece)
    log = b"".join(pieces)

    assert buffer.end == len(log)
    assert buffer.end - buffer.start >= min(capacity, len(log))
    offset = data.draw(st.integers(0, len(log) + 3))
    first, got = read_all(buffer, offset, limit)
    assert log[first:] == got
    assert first <= max(min(offset, buffer.end), buffer.start) + 3
    got.decode()


@given(st.lists(TEXT.filter(bool), min_size=1, max_size=30), st.integers(4, 64))
def test_every_piece_is_whole_characters_and_no_longer_than_asked(pieces: list[bytes], limit: int) -> None:
    buffer = OutputBuffer(1 << 20)
    for piece in pieces:
        buffer.append(piece)

    position = 0
    while (data := buffer.read(position, limit)[1]) != b"":
        data.decode()
        assert len(data) <= limit
        position += len(data)
    assert position == buffer.end


def test_an_offset_that_is_too_old_moves_to_the_oldest_byte_and_one_too_new_to_the_end() -> None:
    buffer = OutputBuffer(100_000)
    for letter in b"abcd":
        buffer.append(bytes([letter]) * 70_000)

    assert buffer.start == 140_000
    assert buffer.read(0, 10) == (140_000, b"c" * 10)
    assert buffer.read(10**9, 10) == (280_000, b"")


def test_an_offset_inside_a_character_moves_to_the_next_one() -> None:
    buffer = OutputBuffer(1 << 20)
    buffer.append("a\u20acb".encode())
    buffer.append(b"c" * 70_000)

    assert buffer.read(2, 10) == (4, b"b")
    assert buffer.read(3, 10) == (4, b"b")


def test_an_offset_inside_the_last_character_of_a_block_moves_to_the_next_block() -> None:
    buffer = OutputBuffer(1 << 20)
    buffer.append(b"a" * 70_000 + "\u20ac".encode())
    buffer.append(b"b")

    assert buffer.read(70_001, 10) == (70_003, b"b")
    buffer = OutputBuffer(10)
    buffer.append("\u20ac".encode())
    assert buffer.read(1, 10) == (3, b"")


def test_many_small_pieces_become_few_blocks() -> None:
    buffer = OutputBuffer(1 << 20)
    for _ in range(50_000):
        buffer.append(b"x" * 80)

    assert len(buffer.read(buffer.start, 1 << 20)[1]) > 32 * 1024


def test_a_huge_piece_is_bounded_and_cut_between_characters() -> None:
    buffer = OutputBuffer(1000)
    buffer.append("\u20ac".encode() * 1_000_000)

    assert buffer.end == 3_000_000
    assert len(buffer) <= 1000 + LARGEST_BLOCK
    buffer.read(buffer.start, 1 << 20)[1].decode()
