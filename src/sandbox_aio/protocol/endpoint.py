"""Where the service is and how to name oneself to it (wire protocol, sections 1.1 to 1.4).

Pure functions of arguments and of an environment mapping that the caller passes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_ENDPOINT",
    "LOCAL",
    "api_key",
    "control_plane_url",
    "merge_headers",
    "quote_name",
    "quote_snapshot",
]

DEFAULT_ENDPOINT = "https://api.smith.langchain.com"
LOCAL = "local"
"""The endpoint that stands for the embedded server."""


def control_plane_url(api_endpoint: str | None, environ: Mapping[str, str]) -> str:
    """Find the control plane.

    Args:
        api_endpoint: The caller's choice, used as it is but for trailing slashes; None or empty to ask the environment.
        environ: `LANGSMITH_ENDPOINT`, else `LANGCHAIN_ENDPOINT`, gives the service's origin; a trailing `/api/v1` or
            `/api` is dropped and `/api/v2/sandboxes` appended.

    Returns:
        The URL that every control-plane path follows, without a trailing slash; or `LOCAL`.

    Raises:
        ValueError: It is not an http or https URL.
    """
    if api_endpoint:
        return api_endpoint if api_endpoint == LOCAL else _checked(api_endpoint.rstrip("/"), "api_endpoint")
    endpoint = _first(environ, "LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT") or DEFAULT_ENDPOINT
    if endpoint == LOCAL:
        return LOCAL
    origin = endpoint.rstrip("/")
    for suffix in ("/api/v1", "/api"):
        if origin.endswith(suffix):
            origin = origin.removesuffix(suffix)
            break
    return _checked(f"{origin}/api/v2/sandboxes", "LANGSMITH_ENDPOINT")


def api_key(argument: str | None, environ: Mapping[str, str]) -> str | None:
    """Find the API key: the argument, else `LANGSMITH_API_KEY`, else `LANGCHAIN_API_KEY`, else None.

    Raises:
        ValueError: It holds something that an HTTP header cannot.
    """
    key = (argument or "").strip() or _first(environ, "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY")
    if key is not None:
        _check_header("the API key", key)
    return key


def merge_headers(*layers: Mapping[str, str] | None) -> dict[str, str]:
    """Merge headers with lower-cased names; a later layer wins.

    Raises:
        ValueError: A name or a value cannot stand in an HTTP header. The message does not show the value.
    """
    merged: dict[str, str] = {}
    for layer in layers:
        for name, value in (layer or {}).items():
            if not name or not name.isascii() or not name.isprintable() or set(name) & set(' :"(),/;<=>?@[]{}\\'):
                raise ValueError(f"{name!r} is not the name of an HTTP header")
            _check_header(f"the header {name!r}", value)
            merged[name.lower()] = value
    return merged


def quote_name(name: str, what: str = "sandbox") -> str:
    """Encode a name as one segment of a path.

    Raises:
        ValueError: The name is empty, or a path would swallow it (`.` and `..`).
    """
    if not name or name in (".", ".."):
        raise ValueError(f"{name!r} is not the name of a {what}")
    return quote(name, safe="")


def quote_snapshot(reference: str) -> str:
    """Encode a snapshot's UUID, `name` or `name:tag` for reading it; the colon stays as it is."""
    return quote_name(reference, "snapshot").replace("%3A", ":")


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    for name in names:
        value = environ.get(name, "").strip()
        if value:
            return value
    return None


def _checked(url: str, what: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an impossible port, or half an IPv6 address
        good = False
    if not good:
        raise ValueError(f"{what} must be an http:// or https:// URL, or {LOCAL!r}, not {url!r}")
    return url


def _check_header(what: str, value: str) -> None:
    if any(not (" " <= character <= "~" or character == "\t") for character in value):
        raise ValueError(f"{what} has characters that an HTTP header cannot carry")
