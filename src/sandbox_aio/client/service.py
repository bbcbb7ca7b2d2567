"""What all calls of one client share: the address, the connections, the background tasks, the embedded server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import anyio

from ..drivers.http import HttpDriver
from ..drivers.scopes import single_error
from ..drivers.transport import Address
from ..errors import LocalProtocolError, RemoteProtocolError
from ..protocol.download import Download
from ..protocol.endpoint import LOCAL, control_plane_url, merge_headers
from ..protocol.endpoint import api_key as find_api_key
from ..protocol.http_requests import BoxOptions, ControlPlane
from ..protocol.policy import Endpoint, policy_from
from .command import CommandSite
from .creation import Creation, delete_quietly
from .embedded import EmbeddedServer
from .tunnel import TunnelSite

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from anyio.abc import TaskGroup

    from ..drivers.command import CommandDriver
    from ..drivers.tunnel import TunnelDriver
    from ..models import SandboxRecord
    from ..protocol.file_requests import DataPlane
    from ..protocol.http_call import HttpCall

__all__ = ["Service"]

T = TypeVar("T")


class Service:
    """The connection of one client to its service. Its arguments are those of `AsyncSandboxClient`."""

    def __init__(
        self,
        *,
        api_endpoint: str | None,
        timeout: float,
        api_key: str | None,
        max_retries: int,
        headers: Mapping[str, str] | None,
    ) -> None:
        self.url: str = control_plane_url(api_endpoint, os.environ)
        key = find_api_key(api_key, os.environ)
        self.timeout = timeout
        self.http: HttpDriver = HttpDriver(
            headers=merge_headers({"x-api-key": key} if key else None, headers), max_retries=max_retries
        )
        self.task_group: TaskGroup | None = None
        """Where background work lives; None outside of `async with`."""
        self._constructor_headers = headers
        self._server = EmbeddedServer() if self.url == LOCAL else None
        self._policy = policy_from(os.environ)
        self._commands: set[CommandDriver] = set()
        self._tunnels: set[TunnelDriver] = set()

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that make another client of the same service."""
        service = self._server and self._server.service
        return {
            "api_endpoint": service.endpoint if service else self.url,
            "timeout": self.timeout,
            "api_key": self.http.headers.get("x-api-key"),
            "max_retries": self.http.max_retries,
            "headers": self._constructor_headers,
        }

    @property
    def unclosed(self) -> bool:
        """Whether there is something to close."""
        return self.http.pool.opened or (self._server is not None and self._server.running)

    def ssl_context(self) -> ssl.SSLContext:
        """The one TLS context of the client."""
        return self.http.pool.ssl_context

    # --- calls --------------------------------------------------------------------------------------------------------

    async def control(self) -> ControlPlane:
        """Find the control plane. The embedded server is started if it is needed.

        Raises:
            EmbeddedServerError: It cannot run here.
            ClientClosedError, ForkedClientError: The client cannot be used any more.
        """
        self.http.pool.check_usable()
        if self._server is None:
            return ControlPlane(self.url, self.timeout)
        service = await self._server.start()
        self.http.headers["x-api-key"] = service.api_key
        return ControlPlane(service.endpoint, self.timeout)

    async def call(self, build: Callable[[ControlPlane], HttpCall[T]], headers: Mapping[str, str] | None = None) -> T:
        """Send a call to the control plane."""
        return await self.http.call(build(await self.control()), headers)

    async def create(
        self,
        options: BoxOptions,
        *,
        name: str | None,
        timeout: float,
        wait_for_ready: bool,
        headers: Mapping[str, str] | None,
    ) -> SandboxRecord:
        """Make a sandbox such that none is left behind; see `Creation`."""
        creation = Creation(
            control=await self.control(),
            http=self.http,
            headers=headers,
            options=options,
            name=name,
            wait_for_ready=wait_for_ready,
            timeout=timeout,
        )
        return await creation.run()

    async def delete_quietly(self, name: str) -> None:
        """Delete a sandbox at the end of its `async with`; see `creation.delete_quietly`."""
        await delete_quietly(lambda: self.call(lambda control: control.delete_box(name)), name)

    async def download(
        self,
        plane: DataPlane,
        path: str,
        write: Callable[[bytes], Awaitable[object]],
        timeout: float,
        headers: Mapping[str, str] | None,
    ) -> int:
        """Hand a file's bytes to `write`, each once and in order, and return how many there were."""
        download = Download(plane=plane, path=path, timeout=timeout, max_retries=self.http.max_retries)
        await self.http.download(download, write, headers)
        return download.offset

    def command_site(self, plane: DataPlane, headers: Mapping[str, str] | None) -> CommandSite:
        """How the commands of a sandbox are reached.

        Raises:
            RemoteProtocolError: The service gave the sandbox an address that is none.
            ClientClosedError, ForkedClientError: The client cannot be used any more.
        """
        address, endpoint = self._websocket(plane, "/execute/ws", headers)
        return CommandSite(address=address, endpoint=endpoint, policy=self._policy, owner=self, drivers=self._commands)

    def tunnel_site(self, plane: DataPlane, headers: Mapping[str, str] | None) -> TunnelSite:
        """How the tunnels of a sandbox are reached. The errors are those of `command_site`."""
        address, endpoint = self._websocket(plane, "/tunnel", headers)
        return TunnelSite(address=address, endpoint=endpoint, owner=self, drivers=self._tunnels)

    def _websocket(self, plane: DataPlane, path: str, headers: Mapping[str, str] | None) -> tuple[Address, Endpoint]:
        self.http.pool.check_usable()
        try:
            address = Address.of(plane.url)
        except ValueError as error:
            raise RemoteProtocolError(
                f"the sandbox {plane.sandbox!r} has a dataplane_url that is none: {error}"
            ) from None
        endpoint = Endpoint(
            host=address.authority,
            target=f"{urlsplit(plane.url).path}{path}",
            headers=merge_headers(self.http.headers, headers),
        )
        return address, endpoint

    # --- opening and closing ----------------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Have a place for background work."""
        self.http.pool.check_usable()
        if self.task_group is not None:
            raise LocalProtocolError("this client was entered already; make another one")
        group = anyio.create_task_group()
        await group.__aenter__()
        self.task_group = group

    async def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the background work, then close."""
        group, self.task_group = self.task_group, None
        try:
            if group is not None:
                group.cancel_scope.cancel()
                async with single_error():
                    if isinstance(error, Exception):  # it is the caller's, and goes on by itself
                        await group.__aexit__(None, None, None)
                    else:
                        await group.__aexit__(kind, error, traceback)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Let go of everything. Shielded and quick; closing again does nothing.

        The tasks of commands end by themselves when their commands are let go. Cancelling their group would cancel the
        block of the caller's `async with`, too.
        """
        with anyio.CancelScope(shield=True):
            for driver in list(self._commands):
                driver.release()
            for tunnel in list(self._tunnels):
                tunnel.close()
            await self.http.pool.aclose()
            if self._server is not None:
                await self._server.aclose()
