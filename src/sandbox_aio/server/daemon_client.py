"""What the server itself asks of a sandbox's daemon: to write a file, run a program, read a file.

All that a daemon says is a stranger's: it is bounded, and never a path of the host.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Self

import httpx

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from sandbox_aio.runtimes.base import DaemonAddress

__all__ = ["DaemonClient", "DaemonError"]

MAX_ANSWER: Final = 16 << 20
"""Bytes of an answer that is not a file."""
TIMEOUT: Final = 30.0
"""Seconds for the daemon to say something."""


class DaemonError(Exception):
    """The daemon refused, failed, or is gone; the message says which."""


class DaemonClient:
    """A sandbox's daemon. Use it in `async with`."""

    def __init__(self, address: DaemonAddress) -> None:
        base = "http://sandbox" if address.path is not None else f"http://{address.host}:{address.port}"
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=address.path, verify=False),  # Plain HTTP: no certificates to load.
            base_url=base,
            headers={"x-sandbox-secret": address.secret},
            timeout=TIMEOUT,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def write(self, path: str, content: bytes) -> None:
        """Write a small file; its folders are made. Raises DaemonError."""
        await self._answer("POST", "/upload", TIMEOUT, params={"path": path}, files={"file": content})

    async def run(self, arguments: Sequence[str], *, timeout: float) -> tuple[int, str]:
        """Run a program; return its exit code and its output, both streams together. Raises DaemonError."""
        body = {"command": list(arguments), "timeout_seconds": int(timeout)}
        answer = (await self._answer("POST", "/execute", timeout + TIMEOUT, json=body)).json()
        try:
            return int(answer["exit_code"]), str(answer["stdout"]) + str(answer["stderr"])
        except (KeyError, TypeError, ValueError) as error:
            raise DaemonError("the sandbox's daemon answered nonsense") from error

    async def read(self, path: str, target: Path, *, max_bytes: int) -> None:
        """Bring a file out of the sandbox, to a new file. Raises DaemonError, and OSError when the disk fails."""
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            async with self._http.stream("GET", "/download", params={"path": path}) as response:
                if response.status_code != 200:
                    raise DaemonError(f"{path} cannot be read from the sandbox: {response.status_code}")
                left = max_bytes
                async for piece in response.aiter_bytes(1 << 20):
                    left -= len(piece)
                    if left < 0:
                        raise DaemonError(f"{path} in the sandbox is longer than {max_bytes:,} bytes")
                    await asyncio.to_thread(os.write, descriptor, piece)
        except httpx.HTTPError as error:
            raise DaemonError(f"{path} cannot be read from the sandbox: {error!r}") from error
        finally:
            os.close(descriptor)

    async def _answer(self, method: str, path: str, timeout: float, **body: object) -> httpx.Response:
        try:
            request = self._http.build_request(method, path, timeout=timeout, **body)  # type: ignore[arg-type]
            response = await self._http.send(request, stream=True)
            try:
                content = bytearray()
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MAX_ANSWER:
                        raise DaemonError("the sandbox's daemon answers too much")
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise DaemonError(f"the sandbox's daemon does not answer: {error!r}") from error
        if not response.is_success:
            text = bytes(content[:500]).decode(errors="replace")
            raise DaemonError(f"the sandbox's daemon refused {path}: {response.status_code} {text}")
        return httpx.Response(response.status_code, content=bytes(content))
