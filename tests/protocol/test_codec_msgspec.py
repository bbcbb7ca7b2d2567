"""`protocol/codec_msgspec.py`: it reads and writes output, and leaves all that is not plain to the general path."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from sandbox_aio.protocol.codec import encode_server_frame
from sandbox_aio.protocol.codec_msgspec import decode_output, quote
from sandbox_aio.protocol.frames import LARGEST_INTEGER, Output
from tests.strategies import outputs, texts


@given(outputs())
def test_output_is_read_as_it_was_written(output: Output) -> None:
    assert decode_output(encode_server_frame(output)) == output


@pytest.mark.parametrize(
    "payload",
    [
        *[b"", b"x", b"5", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"z":' + b"[" * 100_000],
        b'{"type":"exit","exit_code":0}',
        b'{"type":"stdout","data":"x"}',
        b'{"type":"stdout","data":"x","offset":-1}',
        b'{"type":"stdout","data":"x","offset":%d}' % (LARGEST_INTEGER + 1),
        b'{"type":"stdout","data":"x","offset":1.0}',
        b'{"type":"stdout","data":"\xff","offset":0}',
        b'{"type":"stdout","data":"\\ud800","offset":0}',
        b'{"type":"stdout","data":"x","offset":0,"z":"\xff"}',
        b'{"type":"stdout","data":"x","offset":0,"z":1}',
    ],
    ids=lambda payload: repr(payload[:50]),
)
def test_what_is_not_plain_output_is_left_to_the_general_path(payload: bytes) -> None:
    assert decode_output(payload) is None


@given(texts())
def test_text_is_quoted_as_json_does(text: str) -> None:
    assert json.loads(quote(text.encode())) == text
