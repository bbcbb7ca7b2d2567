"""The functions that make rules: what they make is what the official client's make, and what they refuse."""

from __future__ import annotations

from typing import Any

import langsmith.sandbox as official
import pytest

import sandbox_aio

KEY = {"type": "opaque", "value": "k"}
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("workspace_secret", ("A",), {}),
    ("workspace_secret", (" {A} ",), {}),
    ("opaque_secret", (" v ",), {}),
    ("attribution", (), {"headers": {"X-A": "b"}, "enabled": False}),
    ("aws_auth", (), {"access_key_id": KEY, "secret_access_key": KEY, "env_vars": {"A": "b "}}),
    ("aws_auth", (), {"role_arn": " arn ", "session_tags": {"a": "b"}, "name": "n"}),
    ("gcp_auth", (), {"service_account_json": KEY, "scopes": ["a", " b "]}),
    ("gcp_auth", (), {"service_account_json": KEY}),
    ("proxy_config", (), {}),
    ("proxy_config", (), {"rules": [{"name": "a"}], "access_control": {"allow_list": ["a"]}}),
]
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("workspace_secret", ("{A",), {}),
    ("workspace_secret", ("{ }",), {}),
    ("opaque_secret", (" ",), {}),
    ("attribution", (), {"headers": {}, "name": ""}),
    ("aws_auth", (), {}),
    ("aws_auth", (), {"access_key_id": KEY}),
    ("aws_auth", (), {"role_arn": "a", "access_key_id": KEY, "secret_access_key": KEY}),
    ("aws_auth", (), {"access_key_id": KEY, "secret_access_key": KEY, "session_tags": {"a": "b"}}),
    ("aws_auth", (), {"role_arn": "a", "session_tags": {"a": ""}}),
    ("aws_auth", (), {"role_arn": "a", "session_tags": []}),
    ("aws_auth", (), {"role_arn": "a", "env_vars": {}}),
    ("gcp_auth", (), {"service_account_json": KEY, "scopes": []}),
    ("proxy_config", (), {"rules": "a"}),
    ("proxy_config", (), {"rules": [{}]}),
    ("proxy_config", (), {"rules": [{"type": "gcp", "gcp": {}}]}),
    ("proxy_config", (), {"access_control": ["a"]}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), CALLS)
def test_the_same_as_the_official_client(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    assert getattr(sandbox_aio, name)(*arguments, **options) == getattr(official, name)(*arguments, **options)


@pytest.mark.parametrize(("name", "arguments", "options"), WRONG)
def test_both_refuse(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    for client in (official, sandbox_aio):
        with pytest.raises(ValueError, match=r"."):
            getattr(client, name)(*arguments, **options)


def test_no_proxy_warns() -> None:
    with pytest.warns(DeprecationWarning, match="no_proxy"):
        assert sandbox_aio.proxy_config(no_proxy=["a"]) == {"rules": []}
