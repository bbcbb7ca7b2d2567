"""Fetches the service's public keys, with and without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx

from ..errors import SandboxClientError, SandboxTokenVerificationError
from ..protocol.http_call import HttpCall
from ..protocol.key_set import MAX_KEY_SET_BYTES, parse_key_set
from .http import HttpDriver

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["afetch_keys", "fetch_keys"]

Keys = dict[str, dict[str, Any]]

HEADERS: Final[Mapping[str, str]] = {"accept": "application/json", "accept-encoding": "identity"}


def fetch_keys(url: str, timeout: float) -> Keys:
    """Fetch a key set. Raises SandboxTokenVerificationError if it is not to be had. `timeout` bounds each silence."""
    body = b""
    try:
        with (
            httpx.Client(timeout=timeout, follow_redirects=False) as client,
            client.stream("GET", url, headers=HEADERS) as response,
        ):
            for piece in response.iter_raw():
                body += piece
                if len(body) > MAX_KEY_SET_BYTES:
                    raise SandboxTokenVerificationError(f"the keys at {url} are longer than {MAX_KEY_SET_BYTES} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, error) from error
    return _keys(response.status_code, body, url)


async def afetch_keys(url: str, timeout: float) -> Keys:
    """Fetch a key set. Raises SandboxTokenVerificationError if it is not to be had in `timeout` seconds."""
    driver = HttpDriver(headers=HEADERS, max_retries=0)
    call = HttpCall(
        method="GET",
        url=url,
        read=lambda response: _keys(response.status, response.body, url),
        timeout=timeout,
        max_body_bytes=MAX_KEY_SET_BYTES,
    )
    try:
        return await driver.call(call)
    except SandboxTokenVerificationError:
        raise
    except SandboxClientError as error:
        raise _unreachable(url, error) from error
    finally:
        with anyio.CancelScope(shield=True):
            await driver.pool.aclose()


def _unreachable(url: str, error: Exception) -> SandboxTokenVerificationError:
    return SandboxTokenVerificationError(f"could not fetch the keys at {url}: {str(error) or type(error).__name__}")


def _keys(status: int, body: bytes, url: str) -> Keys:
    if status != 200:
        raise SandboxTokenVerificationError(f"could not fetch the keys at {url}: it answered {status}")
    try:
        return parse_key_set(body)
    except ValueError as error:
        raise SandboxTokenVerificationError(f"could not use the keys at {url}: {error}") from error
