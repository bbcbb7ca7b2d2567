"""`protocol/masking.py`: RFC 6455, section 5.3."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.masking import MaskingKeys, mask

keys = st.binary(min_size=4, max_size=4)


@given(payload=st.one_of(st.binary(max_size=40), st.binary(min_size=500, max_size=2000)), key=keys)
def test_masking_is_the_exclusive_or_with_the_repeated_key(payload: bytes, key: bytes) -> None:
    expected = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    assert mask(payload, key) == expected
    assert mask(memoryview(payload), key) == expected


def test_keys_have_four_bytes_and_are_not_used_twice() -> None:
    drawn = MaskingKeys()
    seen = [drawn.next() for _ in range(100)]
    assert {len(key) for key in seen} == {4}
    assert len(set(seen)) == 100
