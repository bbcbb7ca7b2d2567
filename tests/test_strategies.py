"""The strategies draw what they say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import almost_utf8, cut_at, cuts, in_pieces, texts, wild_texts


@given(st.binary(max_size=50), cuts())
def test_pieces_are_the_whole_and_none_is_empty(data: bytes, points: list[int]) -> None:
    pieces = cut_at(data, points)
    assert b"".join(pieces) == data
    assert all(pieces)


@given(st.data(), almost_utf8())
def test_in_pieces_keeps_every_byte(draw: st.DataObject, data: bytes) -> None:
    assert b"".join(draw.draw(in_pieces(data))) == data


@given(texts())
def test_texts_are_utf8(text: str) -> None:
    assert text.encode().decode() == text


@given(wild_texts())
def test_wild_texts_survive_surrogates(text: str) -> None:
    assert text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass") == text
