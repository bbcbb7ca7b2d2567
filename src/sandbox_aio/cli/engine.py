"""Reads an image from the Docker or Podman of this machine, by the API that both have, as `docker save` does."""

from __future__ import annotations

import json
import os
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

__all__ = ["ENGINES", "EngineError", "engine_address", "saved_image"]

ENGINES = {"docker": "DOCKER_HOST", "podman": "CONTAINER_HOST"}
"""The engines, and the variable that says where each is."""

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 600.0
"""How long an engine may take to answer, and to go on: it may gather an image first."""
MAX_ERROR_BYTES = 64 * 1024


class EngineError(Exception):
    """An engine cannot be reached, or does not give an image; `hint` says what may help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def engine_address(engine: str, environ: Mapping[str, str]) -> str:
    """The URL of an engine: its variable's, else that of the first of its sockets that is there."""
    if named := environ.get(ENGINES[engine], "").strip():
        return named
    own = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if engine == "docker":
        sockets = ["/var/run/docker.sock", f"{own}/docker.sock"]
    else:
        sockets = [f"{own}/podman/podman.sock", "/run/podman/podman.sock"]
    return f"unix://{next(filter(os.path.exists, sockets), sockets[0])}"


@asynccontextmanager
async def saved_image(engine: str, name: str, address: str) -> AsyncIterator[AsyncGenerator[bytes]]:
    """Ask an engine for an image; give the bytes of its archive as they come.

    Raises:
        EngineError: It cannot be reached, or does not have the image; also while the bytes are read.
    """
    transport, origin = _transport(engine, address)
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    async with httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
        url = f"{origin}/images/{quote(name, safe='/:@')}/get"
        try:
            async with client.stream("GET", url) as response:
                if response.status_code != 200:
                    reason = await _reason(response)
                    raise EngineError(f"{engine} does not give {name!r}: {reason}", f"{engine} pull {name}")
                async with aclosing(_pieces(engine, response)) as pieces:
                    yield pieces
        except httpx.TransportError as error:
            hint = f"is it running, and may you use it? {ENGINES[engine]} says where it is"
            raise EngineError(f"cannot reach {engine} at {address}: {error}", hint) from error


async def _pieces(engine: str, response: httpx.Response) -> AsyncGenerator[bytes]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    except httpx.TransportError as error:
        raise EngineError(f"{engine} broke off: {error}") from error


async def _reason(response: httpx.Response) -> str:
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    try:
        reason = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        reason = f"it answered {response.status_code}"
    return str(reason)


def _transport(engine: str, address: str) -> tuple[httpx.AsyncHTTPTransport, str]:
    parts = urlsplit(address)
    if parts.scheme == "unix":
        return httpx.AsyncHTTPTransport(uds=parts.path), "http://localhost"
    if parts.scheme in ("tcp", "http") and parts.hostname:
        return httpx.AsyncHTTPTransport(), f"http://{parts.netloc}"
    raise EngineError(
        f"{ENGINES[engine]} is {address!r}, which is neither unix:// nor tcp://",
        f"{engine} save IMAGE | sandbox-aio snapshot import - NAME",
    )
