"""A tunnel to something that listens in a sandbox, and what `sandbox.tunnel()` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import anyio
import attrs

from ..drivers.local_socket import listen
from ..drivers.scopes import single_error
from ..drivers.transport import Address, Transport, open_transport
from ..drivers.tunnel import TunnelDriver
from ..errors import LocalProtocolError
from ..protocol.policy import Endpoint
from ..protocol.retry import Backoff
from ..protocol.tunnel_link import TunnelLink
from ..protocol.tunnel_preamble import TunnelTarget
from ..protocol.yamux_events import YamuxLimits

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Protocol

    from anyio.abc import TaskGroup

    from ..models import TunnelStatistics

    class Owner(Protocol):
        """Whose tunnels these are."""

        @property
        def task_group(self) -> TaskGroup | None: ...

        def ssl_context(self) -> ssl.SSLContext: ...


__all__ = ["AsyncTunnel", "PendingTunnel", "TunnelOptions", "TunnelSite"]

WINDOW_BYTES = 1024 * 1024
"""What the sandbox may send on a new connection before it is taken; it grows to `YamuxLimits.max_window`."""


@attrs.frozen(kw_only=True)
class TunnelSite:
    """How the tunnels of a sandbox are reached, and where they lead."""

    address: Address
    endpoint: Endpoint
    owner: Owner
    drivers: set[TunnelDriver]
    """Every tunnel that is open: closing the client closes them."""

    async def connect(self) -> Transport:
        """Open a transport."""
        context = self.owner.ssl_context() if self.address.tls else None
        return await open_transport(self.address, context)


@attrs.frozen(kw_only=True)
class TunnelOptions:
    """What `sandbox.tunnel` was told. Making one checks it, before anything is opened."""

    remote_port: int | None
    remote_path: str | None
    local_port: int | None
    max_reconnects: int

    def __attrs_post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        self.target()
        if self.local_port is not None and not 0 <= self.local_port <= 65535:
            raise ValueError(f"local_port is a number from 0 to 65535, or None, not {self.local_port!r}")
        if self.max_reconnects < 0:
            raise ValueError(f"max_reconnects is 0 or a positive number, not {self.max_reconnects!r}")

    def target(self) -> TunnelTarget:
        """Where the tunnel leads."""
        return TunnelTarget(port=self.remote_port, path=self.remote_path)

    @property
    def wanted_port(self) -> int:
        """What to listen on; 0 lets the system choose."""
        if self.local_port is None:
            return 0
        return self.local_port or self.remote_port or 0


class AsyncTunnel:
    """A local port that leads into a sandbox.

    Get one with `AsyncSandbox.tunnel`. Every connection to `127.0.0.1` at `local_port` becomes one to the port, or the
    unix socket, in the sandbox. Each side may end while the other goes on; a connection that the sandbox refuses or
    breaks off is reset, and `statistics().last_error` says why.

    A local program is connected at once, before the sandbox was asked: it sees a refusal as a reset, not as a
    connection that is refused. `check` asks beforehand.

    When the tunnel's own connection is lost, the local ones are reset, but the port stays: the next local connection
    has the tunnel connect anew. It tries `max_reconnects` times for each loss; with 0, the tunnel stays lost.
    """

    local_port: int
    """The port on this machine, at `127.0.0.1`."""
    remote_port: int | None
    """The port in the sandbox; None for a unix socket."""
    remote_path: str | None
    """The unix socket in the sandbox; None for a port."""

    def __init__(self, driver: TunnelDriver, options: TunnelOptions, local_port: int) -> None:
        """Tunnels come from a sandbox; this is not for users."""
        self._driver = driver
        self.local_port = local_port
        self.remote_port = options.remote_port
        self.remote_path = options.remote_path

    def __repr__(self) -> str:
        target = self.remote_path if self.remote_port is None else self.remote_port
        return f"AsyncTunnel(local_port={self.local_port}, to={target!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the tunnel; see `aclose`."""
        await self.aclose()

    def statistics(self) -> TunnelStatistics:
        """Count what has passed so far."""
        return self._driver.statistics()

    async def check(self) -> None:
        """See whether what the tunnel leads to accepts connections, by making one and dropping it.

        Raises:
            TunnelConnectionRefusedError: Nothing listens there.
            TunnelPortNotAllowedError: It may not be reached.
            TunnelUnsupportedVersionError: The server knows no tunnels to unix sockets.
            SandboxConnectionError: The tunnel has lost its connection, and could not make another one.
            LocalProtocolError: The tunnel is closed, or was closed meanwhile.
        """
        await self._driver.check()

    async def aclose(self) -> None:
        """Close the local port, and reset the connections that are open. Closing again does nothing.

        It is shielded from cancellation, and quick.
        """
        self._driver.close()
        with anyio.CancelScope(shield=True):
            await self._driver.wait_closed()


class PendingTunnel:
    """A tunnel that is opened when this is awaited or entered, once.

    ::

        async with sandbox.tunnel(5432) as tunnel: ...
        tunnel = await sandbox.tunnel(5432)
    """

    def __init__(self, site: Callable[[], TunnelSite], options: TunnelOptions) -> None:
        self._site: Callable[[], TunnelSite] | None = site
        self._options = options
        self._group: TaskGroup | None = None
        self._tunnel: AsyncTunnel | None = None

    def __await__(self) -> Generator[Any, Any, AsyncTunnel]:
        """Open the tunnel. Cancelled, nothing is left of it; see `AsyncSandbox.tunnel`.

        Raises:
            LocalProtocolError: It was opened before; or the client was not entered, so that nobody can serve it.
        """
        site = self._take()
        group = site.owner.task_group
        if group is None:
            raise LocalProtocolError("use `async with` for the client, or `async with sandbox.tunnel(...)`")
        return self._open(site, group).__await__()

    async def __aenter__(self) -> AsyncTunnel:
        site = self._take()
        group = anyio.create_task_group()
        await group.__aenter__()
        try:
            self._tunnel = await self._open(site, group)
        except BaseException as error:
            async with single_error():
                await group.__aexit__(type(error), error, error.__traceback__)
            raise
        self._group = group
        return self._tunnel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the tunnel."""
        group, self._group = self._group, None
        assert self._tunnel is not None and group is not None
        self._tunnel._driver.close()
        async with single_error():
            if isinstance(error, Exception):  # it is the caller's, and goes on by itself
                await group.__aexit__(None, None, None)
            else:
                await group.__aexit__(kind, error, traceback)

    def _take(self) -> TunnelSite:
        site, self._site = self._site, None
        if site is None:
            raise LocalProtocolError("this tunnel was opened already; call sandbox.tunnel() for another one")
        return site()

    async def _open(self, site: TunnelSite, group: TaskGroup) -> AsyncTunnel:
        options = self._options
        listener = listen(options.wanted_port)
        link = TunnelLink(
            site.endpoint,
            max_reconnects=options.max_reconnects,
            limits=YamuxLimits(window=WINDOW_BYTES),
            backoff=Backoff(base=0.5, cap=8.0),
        )
        port: int = listener.getsockname()[1]
        driver = TunnelDriver(link, options.target(), site.connect, listener, site.drivers.discard)
        site.drivers.add(driver)
        try:
            await group.start(driver.run)
        except BaseException:
            driver.close()
            raise
        return AsyncTunnel(driver, options, port)
