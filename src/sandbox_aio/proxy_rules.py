"""Rules for a sandbox's way out, as plain data for `proxy_config=`. Wire protocol, sections 1.14 and 7.5.

What a server does not offer it refuses by name; these functions check only what is wrong for every server. All raise
ValueError.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["attribution", "aws_auth", "gcp_auth", "opaque_secret", "proxy_config", "workspace_secret"]

Json = dict[str, Any]


def workspace_secret(name: str) -> Json:
    """Refer to a secret of the workspace by its name, in braces or not."""
    bare = _text(name, "name")
    if bare.startswith("{") != bare.endswith("}"):
        raise ValueError("a workspace secret is NAME or {NAME}")
    if bare.startswith("{"):
        bare = bare[1:-1]
    return {"type": "workspace_secret", "value": f"{{{_text(bare, 'name')}}}"}


def opaque_secret(value: str) -> Json:
    """Send a secret that the server keeps and never shows."""
    return {"type": "opaque", "value": _text(value, "value")}


def attribution(*, headers: Mapping[str, str], name: str = "attribution", enabled: bool = True) -> Json:
    """Have plain headers added to every request."""
    fields = [{"name": key, "type": "plaintext", "value": value} for key, value in headers.items()]
    return {"name": _text(name, "name"), "type": "attribution", "enabled": enabled, "headers": fields}


def aws_auth(
    *,
    access_key_id: Mapping[str, Any] | None = None,
    secret_access_key: Mapping[str, Any] | None = None,
    role_arn: str | None = None,
    session_tags: Mapping[str, str] | None = None,
    name: str = "aws",
    enabled: bool = True,
    env_vars: Mapping[str, str] | None = None,
) -> Json:
    """Have requests to AWS signed, with a pair of keys or with a role, which alone takes session tags."""
    if role_arn:
        if access_key_id is not None or secret_access_key is not None:
            raise ValueError("give role_arn or a pair of keys, not both")
        aws: Json = {"role_arn": _text(role_arn, "role_arn")}
        if session_tags is not None:
            aws["session_tags"] = _texts(session_tags, "session_tags")
    elif session_tags:
        raise ValueError("session_tags need role_arn")
    elif access_key_id is None or secret_access_key is None:
        raise ValueError("AWS needs role_arn, or both access_key_id and secret_access_key")
    else:
        aws = {"access_key_id": dict(access_key_id), "secret_access_key": dict(secret_access_key)}
    return _provider("aws", aws, name, enabled, env_vars)


def gcp_auth(
    *,
    service_account_json: Mapping[str, Any],
    scopes: Sequence[str] | None = None,
    name: str = "gcp",
    enabled: bool = True,
    env_vars: Mapping[str, str] | None = None,
) -> Json:
    """Have requests to Google carry a token of a service account."""
    gcp: Json = {"service_account_json": dict(service_account_json)}
    if scopes is not None:
        gcp["scopes"] = _list(scopes, "scopes")
    return _provider("gcp", gcp, name, enabled, env_vars)


def proxy_config(
    *,
    rules: Sequence[Mapping[str, Any]] | None = None,
    no_proxy: Sequence[str] | None = None,
    access_control: Mapping[str, Any] | None = None,
) -> Json:
    """Put rules together. A rule for `gcp` needs scopes. `no_proxy` does nothing, and warns."""
    if no_proxy is not None:
        warnings.warn("no_proxy does nothing: there is no way past the proxy", DeprecationWarning, stacklevel=2)
    given: object = rules if rules is not None else []
    if not isinstance(given, list | tuple) or not all(isinstance(rule, Mapping) and rule for rule in given):
        raise ValueError("rules is a list of rules, none of which is empty")
    for rule in rules or ():
        if rule.get("type") == "gcp":
            gcp = rule.get("gcp")
            if not isinstance(gcp, Mapping) or "scopes" not in gcp:
                raise ValueError("a gcp rule needs scopes")
            _list(gcp["scopes"], "scopes")
    config: Json = {"rules": [dict(rule) for rule in rules or ()]}
    if access_control is not None:
        if not isinstance(access_control, Mapping):
            raise ValueError("access_control is a mapping")
        config["access_control"] = dict(access_control)
    return config


def _provider(kind: str, members: Json, name: str, enabled: bool, env_vars: Mapping[str, str] | None) -> Json:
    rule: Json = {"name": _text(name, "name"), "type": kind, "enabled": enabled, kind: members}
    if env_vars is not None:
        rule["env_vars"] = _texts(env_vars, "env_vars")
        if not env_vars:
            raise ValueError("env_vars is not empty, or left out")
    return rule


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is a text that is not empty")
    return value.strip()


def _texts(values: Mapping[str, str], name: str) -> dict[str, str]:
    """Values as they are: a space at the end may mean something."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} maps names to texts")
    for key, value in values.items():
        _text(value, f"{name}[{key!r}]")
    return {_text(key, f"a name in {name}"): value for key, value in values.items()}


def _list(values: Sequence[str], name: str) -> list[str]:
    if isinstance(values, str) or not values:
        raise ValueError(f"{name} is a list of texts that is not empty")
    return [_text(value, name) for value in values]
