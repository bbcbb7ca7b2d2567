"""Where the service is, and what may stand in a URL and in a header."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.protocol.endpoint import (
    LOCAL,
    api_key,
    control_plane_url,
    merge_headers,
    quote_name,
    quote_snapshot,
)


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "https://api.smith.langchain.com/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "https://h"}, "https://h/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "https://h/api"}, "https://h/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "https://h/api/v1"}, "https://h/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "https://h/api/v1//"}, "https://h/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "https://h/api/api"}, "https://h/api/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "http://h:1984/x/"}, "http://h:1984/x/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "  ", "LANGCHAIN_ENDPOINT": "http://c"}, "http://c/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "http://s", "LANGCHAIN_ENDPOINT": "http://c"}, "http://s/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "local"}, LOCAL),
    ],
)
def test_the_environment_names_the_origin(environ: dict[str, str], url: str) -> None:
    assert control_plane_url(None, environ) == url
    assert control_plane_url("", environ) == url


@pytest.mark.parametrize(
    ("argument", "url"),
    [("https://h/v2/sandboxes//", "https://h/v2/sandboxes"), ("http://h", "http://h"), ("local", LOCAL)],
)
def test_the_argument_is_taken_as_it_is(argument: str, url: str) -> None:
    assert control_plane_url(argument, {"LANGSMITH_ENDPOINT": "http://other"}) == url


@pytest.mark.parametrize(
    "wrong",
    ["h", "ftp://h", "https://", "/v2/sandboxes", "localhost:1984", "http://h:99999", "http://h:0", "http://[::1"],
)
def test_an_endpoint_that_is_no_url_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(ValueError, match="api_endpoint must be an http"):
        control_plane_url(wrong, {})
    with pytest.raises(ValueError, match="LANGSMITH_ENDPOINT must be an http"):
        control_plane_url(None, {"LANGSMITH_ENDPOINT": wrong})


@pytest.mark.parametrize(
    ("argument", "environ", "key"),
    [
        (None, {}, None),
        ("a", {"LANGSMITH_API_KEY": "b"}, "a"),
        (" a\n", {}, "a"),
        ("", {"LANGSMITH_API_KEY": "b\n", "LANGCHAIN_API_KEY": "c"}, "b"),
        (None, {"LANGSMITH_API_KEY": " ", "LANGCHAIN_API_KEY": "c"}, "c"),
    ],
)
def test_the_key_comes_from_the_argument_or_the_environment(
    argument: str | None, environ: dict[str, str], key: str | None
) -> None:
    assert api_key(argument, environ) == key


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="the API key has characters") as caught:
        api_key("sécret", {})
    assert "cret" not in str(caught.value)


def test_later_headers_win_whatever_their_case() -> None:
    merged = merge_headers({"X-Api-Key": "a", "A": "1"}, None, {"x-api-key": "b"})
    assert merged == {"x-api-key": "b", "a": "1"}


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\n", "ü", "a(b)"])
def test_a_header_needs_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of an HTTP header"):
        merge_headers({name: "x"})


@given(st.text())
def test_a_header_value_is_sent_as_it_is_or_refused(value: str) -> None:
    try:
        assert merge_headers({"a": value}) == {"a": value}
    except ValueError as error:
        assert "the header 'a' has characters" in str(error)
        assert not (value.isascii() and value.isprintable())


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_name_is_one_segment_of_a_path(name: str) -> None:
    if name in (".", ".."):
        with pytest.raises(ValueError, match="not the name of a sandbox"):
            quote_name(name)
        return
    quoted = quote_name(name)
    assert unquote(quoted) == name
    assert urlsplit(f"http://h/boxes/{quoted}").path.split("/") == ["", "boxes", quoted]


def test_names_are_quoted_as_the_wire_wants_them() -> None:
    assert quote_name("a b/c:d~") == "a%20b%2Fc%3Ad~"
    assert quote_snapshot("ns/img:v1") == "ns%2Fimg:v1"
    with pytest.raises(ValueError, match="'' is not the name of a snapshot"):
        quote_snapshot("")
