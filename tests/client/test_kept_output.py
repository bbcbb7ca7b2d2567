"""What a result keeps of a command's output."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.client.kept_output import KeptOutput
from sandbox_aio.models import OutputChunk, OutputGap

texts = st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=8)


@given(texts)
def test_without_a_limit_everything_is_kept(batches: list[list[str]]) -> None:
    kept = KeptOutput(None)
    for batch in batches:
        kept.add([OutputChunk("stdout", text, 0) for text in batch])
    assert kept.stdout.text() == "".join("".join(batch) for batch in batches)
    assert (kept.stderr.text(), kept.stdout.dropped_bytes) == ("", 0)


@given(texts, st.integers(0, 20))
def test_a_limit_keeps_the_beginning_and_the_end_and_counts_the_rest(batches: list[list[str]], limit: int) -> None:
    kept = KeptOutput(limit)
    for batch in batches:
        kept.add([OutputChunk("stderr", text, 0) for text in batch])
    whole = "".join("".join(batch) for batch in batches)
    head = limit // 2
    expected = whole if len(whole) <= limit else whole[:head] + whole[len(whole) - (limit - head) :]
    assert kept.stderr.text() == expected
    assert kept.stderr.text() == expected
    assert kept.stderr.dropped_bytes == len(whole.encode()) - len(expected.encode())


@given(st.integers(1, 200), st.integers(0, 5000))
def test_large_pieces_are_trimmed_like_small_ones(count: int, limit: int) -> None:
    kept = KeptOutput(limit)
    piece = "".join(chr(65 + n % 26) for n in range(2000))
    for _ in range(count):
        kept.add([OutputChunk("stdout", piece, 0)] * 3)
    assert len(kept.stdout.text()) == min(limit, 6000 * count)
    assert kept.stdout.dropped_bytes == 6000 * count - len(kept.stdout.text())


def test_gaps_count_as_dropped() -> None:
    kept = KeptOutput(None)
    kept.add([OutputGap("stdout", "", 0, missing_bytes=5), OutputChunk("stdout", "x", 5)])
    kept.add([OutputGap("stderr", "", 0, missing_bytes=7)])
    assert (kept.stdout.dropped_bytes, kept.stderr.dropped_bytes) == (5, 7)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_output_bytes is -1"):
        KeptOutput(-1)
