"""`protocol/cursor.py`: overlap is dropped, gaps are said, drift loses nothing (wire protocol, section 3.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.models import OutputChunk, OutputGap
from sandbox_aio.protocol.cursor import OutputCursor, measure
from sandbox_aio.protocol.frames import UNKNOWN_OFFSET
from tests.strategies import texts, wild_texts


def out(data: str, offset: int) -> OutputChunk:
    return OutputChunk("stdout", data, offset)


def gap(offset: int, missing: int) -> OutputGap:
    return OutputGap("stdout", "", offset, missing_bytes=missing)


def at(offset: int) -> OutputCursor:
    """A cursor of a fresh attachment that has everything below `offset`."""
    cursor = OutputCursor(offset)
    cursor.attached()
    return cursor


def test_chunks_in_order_pass_untouched() -> None:
    cursor = OutputCursor()
    chunk = out("héllo", 0)
    assert cursor.accept(chunk)[0] is chunk
    assert cursor.offset == 6
    assert cursor.accept(out("€", 6)) == [out("€", 6)]
    assert cursor.offset == 9


@pytest.mark.parametrize(
    ("chunk", "fresh", "offset"),
    [
        (out("abc", 0), [], 6),
        (out("abcdef", 0), [], 6),
        (out("cdefgh", 2), [out("gh", 6)], 8),
        (out("g", 6), [out("g", 6)], 7),
        (out("é€𝄞", 4), [out("€𝄞", 6)], 13),
        (out("x", 8), [gap(6, 2), out("x", 8)], 9),
        (out("", 6), [], 6),
        (out("", 3), [], 6),
        (out("", 8), [gap(6, 2)], 8),
    ],
)
def test_what_a_new_attachment_replays(chunk: OutputChunk, fresh: list[OutputChunk | OutputGap], offset: int) -> None:
    cursor = at(6)
    assert cursor.accept(chunk) == fresh
    assert cursor.offset == offset


def test_replay_may_overlap_in_several_chunks_until_it_has_caught_up() -> None:
    cursor = at(5)
    assert [cursor.accept(out(data, offset)) for data, offset in [("ab", 0), ("cd", 2), ("", 5), ("ef", 4)]] == [
        [],
        [],
        [],
        [out("f", 5)],
    ]
    assert cursor.caught_up


def test_a_cut_inside_a_character_is_replaced_and_the_offset_stays_true() -> None:
    cursor = at(1)
    assert cursor.accept(out("€x", 0)) == [out("\ufffd\ufffdx", 1)]
    assert cursor.offset == 4


def test_after_catching_up_the_daemon_is_right_about_offsets_that_lag() -> None:
    cursor = OutputCursor()
    cursor.accept(out("\ufffd\ufffd", 0))  # two invalid bytes, counted as two, sent as six
    assert cursor.accept(out("ok", 2)) == [out("ok", 2)]
    assert cursor.offset == 4
    assert cursor.accept(out("", 1)) == []
    assert cursor.missing == 0


def test_gaps_are_said_at_any_time_and_added_up() -> None:
    cursor = OutputCursor()
    assert cursor.accept(out("a", 10)) == [gap(0, 10), out("a", 10)]
    assert cursor.accept(out("b", 14)) == [gap(11, 3), out("b", 14)]
    assert cursor.missing == 13


def test_a_chunk_without_an_offset_is_taken_to_be_the_next() -> None:
    cursor = at(7)
    assert cursor.accept(out("é", UNKNOWN_OFFSET)) == [out("é", 7)]
    assert cursor.offset == 9
    assert cursor.accept(out("x", UNKNOWN_OFFSET)) == [out("x", 9)]


def test_an_attachment_may_begin_earlier_than_it_was_asked_to_more_than_once() -> None:
    cursor = OutputCursor()
    cursor.accept(out("abc", 0))
    for _ in range(2):
        cursor.attached()
        assert cursor.accept(out("bc", 1)) == []
    assert cursor.accept(out("cd", 2)) == [out("d", 3)]


@given(texts())
def test_measure_counts_bytes_of_utf8(text: str) -> None:
    chunk = out(text, 3)
    assert measure(chunk)[0] is chunk
    assert measure(chunk)[1] == len(text.encode())


@given(wild_texts())
def test_measure_replaces_surrogates_and_counts_them_as_three(text: str) -> None:
    whole, size = measure(out(text, 3))
    assert len(whole.data.encode()) == size == len(text.encode("utf-8", "surrogatepass"))
    assert whole.offset == 3


@given(texts(max_size=30), st.data())
def test_any_replays_of_a_log_give_the_log(log: str, draw: st.DataObject) -> None:
    """Attachments begin anywhere at or before the cursor, end anywhere, and are chunked anyhow."""
    data = log.encode()
    edges = [len(log[:index].encode()) for index in range(len(log) + 1)]
    cursor = OutputCursor()
    seen: list[OutputChunk | OutputGap] = []
    for _ in range(draw.draw(st.integers(1, 4))):
        cursor.attached()
        begin = draw.draw(st.sampled_from([edge for edge in edges if edge <= cursor.offset]))
        stops = draw.draw(st.lists(st.sampled_from([edge for edge in edges if edge >= begin]), max_size=5))
        for stop in sorted(set(stops)):
            seen += cursor.accept(out(data[begin:stop].decode(), begin))
            begin = stop
    assert not any(isinstance(item, OutputGap) for item in seen)
    assert "".join(item.data for item in seen).encode() == data[: cursor.offset]
    assert all(item.data for item in seen)


@given(st.lists(st.tuples(st.integers(0, 30), texts(max_size=4)), max_size=10), st.booleans())
def test_any_chunks_at_all_account_for_every_byte_between_offsets(
    chunks: list[tuple[int, str]], reattach: bool
) -> None:
    """Whatever a daemon says: gaps have the size of the jump, nothing is empty, and the cursor ends where it says."""
    cursor = OutputCursor()
    for offset, data in chunks:
        before = cursor.offset
        if reattach:
            cursor.attached()
        for item in cursor.accept(out(data, offset)):
            if isinstance(item, OutputGap):
                assert (item.offset, item.missing_bytes, item.data) == (before, offset - before, "")
            else:
                assert item.data
                assert item.offset in (offset, before)
        if reattach:
            assert cursor.offset == max(before, offset + len(data.encode()))
