"""Requests and responses as data."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.errors import RemoteProtocolError
from sandbox_aio.protocol.http_call import HttpCall, HttpResponse, json_body, json_object, nothing


@pytest.mark.parametrize(("status", "success"), [(199, False), (200, True), (299, True), (300, False), (404, False)])
def test_any_2xx_is_a_success(status: int, success: bool) -> None:
    assert HttpResponse(status=status).success is success


def test_json_is_written_in_plain_ascii() -> None:
    assert json_body({"a": "é\ud800"}) == {
        "body": b'{"a":"\\u00e9\\ud800"}',
        "headers": {"content-type": "application/json"},
    }
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_body({"a": float("nan")})


@given(st.binary())
def test_a_body_is_an_object_or_a_typed_error(body: bytes) -> None:
    try:
        json_object(HttpResponse(status=200, body=body))
    except RemoteProtocolError as error:
        assert "the server answered" in str(error)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"null", b"[" * 100_000, b"\xff"])
def test_what_is_no_object_is_said_in_a_sentence(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"not JSON|where a JSON object was expected"):
        json_object(HttpResponse(status=200, body=body))
    assert json_object(HttpResponse(status=200, body=b'{"a": 1}')) == {"a": 1}


def test_some_answers_say_nothing() -> None:
    nothing(HttpResponse(status=204))


@pytest.mark.parametrize(
    ("timeout", "error"), [(0, ValueError), (-1, ValueError), (math.nan, ValueError), ("5", TypeError)]
)
def test_a_time_that_makes_no_sense_is_refused_before_anything_is_sent(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout must be a"):
        HttpCall(method="GET", url="http://h/", read=nothing, timeout=timeout)
    assert HttpCall(method="GET", url="http://h/", read=nothing, timeout=0.5).timeout == 0.5
