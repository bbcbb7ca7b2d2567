"""Where the service's public keys are, and how long they are taken for true."""

from __future__ import annotations

import pytest

from sandbox_aio.protocol.key_set import KeyCache, key_set_url, parse_key_set

PATH = "/.well-known/jwks.json"


def url(api_url: str | None = None, jwks_url: str | None = None, insecure: bool = False, **environ: str) -> str:
    return key_set_url(api_url=api_url, jwks_url=jwks_url, allow_insecure=insecure, environ=environ)


def test_where_the_keys_are() -> None:
    assert url() == f"https://api.smith.langchain.com{PATH}"
    assert url(LANGSMITH_ENDPOINT=" https://a.example:8443/api/v1 ") == f"https://a.example:8443{PATH}"
    assert url("https://b.example/x", LANGSMITH_ENDPOINT="https://a.example") == f"https://b.example{PATH}"
    assert url("https://b.example", "https://c.example/keys") == "https://c.example/keys"
    for host in ("localhost", "127.0.0.1:80", "[::1]:80"):
        assert url(f"http://{host}/x") == f"http://{host}{PATH}"
    assert url("http://a.example", insecure=True) == f"http://a.example{PATH}"


@pytest.mark.parametrize("wrong", ["http://a.example", "local", "ftp://localhost", "https:///x"])
def test_where_they_cannot_be(wrong: str) -> None:
    with pytest.raises(ValueError, match="https"):
        url(wrong)
    with pytest.raises(ValueError, match="https"):
        url(jwks_url=wrong)


def test_keys_are_known_by_their_ids() -> None:
    assert parse_key_set(b'{"keys": [{"kid": "a", "x": 1}, {"x": 2}, {"kid": 3}, 4]}') == {"a": {"kid": "a", "x": 1}}
    for wrong in (b"", b"[]", b"{}", b'{"keys": 1}', b"[" * 100_000):
        with pytest.raises(ValueError, match="JSON Web Key Set"):
            parse_key_set(wrong)


def test_when_keys_are_fetched() -> None:
    cache = KeyCache()
    assert cache.wants_fetch("a", 0)
    cache.fetched({"a": {"x": 1}}, 100)
    assert cache.find("a") == {"x": 1}
    assert cache.find("b") is None
    assert [cache.wants_fetch("a", now) for now in (100, 399.9, 400)] == [False, False, True]
    assert [cache.wants_fetch("b", now) for now in (100, 129.9, 130)] == [False, False, True]
    cache.fetched({"b": {}}, 130)
    assert cache.find("a") is None
    assert not cache.wants_fetch("a", 159)
