"""The proxies of all sandboxes of a server: one listener for each, and every connection that came through it."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

import attrs

from sandbox_aio.runtimes.base import EGRESS_PORT, RuntimeFailure

from ..errors import ApiError
from ..streams import Stream
from . import trust
from .dialing import Dialer
from .http_proxy import ProxyConnection, SandboxProxy
from .intercept import BUNDLE_PATH, CA_VARIABLES, CertificateAuthority

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox_aio.runtimes.base import DaemonAddress, Runtime

    from .config import ProxyConfig
    from .dialing import Resolve
    from .policy import OperatorPolicy

__all__ = ["PROXY_VARIABLES", "EgressGateway"]

logger: logging.Logger = logging.getLogger("sandbox_aio.egress")

MAX_SANDBOX_CONNECTIONS: Final = 256
"""Connections of one sandbox to its proxy at once. One more is answered 503."""
ACCEPT_PAUSE: Final = 0.5
"""Seconds until the next try when the server has no descriptors left."""

PROXY_VARIABLES: Final = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), f"http://127.0.0.1:{EGRESS_PORT}"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1"),
}
"""By which programs in a sandbox find their proxy."""


@attrs.define(eq=False)
class _Attached:
    listener: socket.socket
    proxy: SandboxProxy
    accepting: asyncio.Task[None] | None = None
    serving: set[asyncio.Task[None]] = attrs.field(factory=set)


class EgressGateway:
    """Serves sandboxes from `attach` to `detach`. For one event loop."""

    def __init__(self, policy: OperatorPolicy, state_dir: Path, *, resolve: Resolve | None = None) -> None:
        self.policy: OperatorPolicy = policy
        self.authority: CertificateAuthority = CertificateAuthority(state_dir)
        self._dialer = Dialer(policy) if resolve is None else Dialer(policy, resolve)
        self._attached: dict[str, _Attached] = {}
        self._tls: ssl.SSLContext | None = None
        self.offered: bool = False
        """Whether sandboxes have no network but this."""

    @property
    def summary(self) -> str:
        """What the operator is told at the start."""
        named = ", ".join(entry.text for entry in self.policy.allowed)
        base = "open" if self.policy.open else "closed"
        return (f"{base}, and {named}" if named else base) if self.offered else "the host's network"

    def variables(self, config: ProxyConfig) -> dict[str, str]:
        """What the environment of a sandbox's commands begins with."""
        trusting = dict.fromkeys(CA_VARIABLES, BUNDLE_PATH) if config.may_intercept else {}
        return {**PROXY_VARIABLES, **trusting} if self.offered else {}

    async def open_way_out(
        self, runtime: Runtime, sandbox_id: str, address: DaemonAddress, config: ProxyConfig
    ) -> None:
        """Serve a sandbox that has just been started, and have it trust us if its rules need that.

        Raises RuntimeFailure, and serves nothing then.
        """
        listener = await runtime.egress_listener(sandbox_id)
        if listener is None:
            return
        await self.detach(sandbox_id)
        self.attach(sandbox_id, listener, config)
        try:
            await self.follow(sandbox_id, address, config)
        except RuntimeFailure:
            await self.detach(sandbox_id)
            raise

    async def follow(self, sandbox_id: str, address: DaemonAddress, config: ProxyConfig) -> None:
        """Follow other rules from now on. Raises RuntimeFailure if the sandbox cannot be made to trust us."""
        self.update(sandbox_id, config)
        if config.may_intercept and sandbox_id in self._attached:
            try:
                await trust.install(address, await asyncio.to_thread(self.authority.bundle))
            except (OSError, ValueError, trust.TrustError) as error:
                raise RuntimeFailure(str(error), kind="Egress") from error

    def attach(self, sandbox_id: str, listener: socket.socket, config: ProxyConfig) -> None:
        """Serve a sandbox that runs; the listener is the gateway's from now on."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        proxy = SandboxProxy(
            sandbox_id=sandbox_id, config=config, dialer=self._dialer, authority=self.authority, tls=self._tls
        )
        attached = self._attached[sandbox_id] = _Attached(listener, proxy)
        attached.accepting = asyncio.create_task(self._accept(attached))

    def update(self, sandbox_id: str, config: ProxyConfig) -> None:
        """Follow other rules from now on. If others may be reached now, the connections that are open are cut."""
        if (attached := self._attached.get(sandbox_id)) is None:
            return
        changed = attached.proxy.config.access != config.access
        attached.proxy.config = config
        if changed:
            for task in attached.serving:
                task.cancel()

    async def detach(self, sandbox_id: str) -> None:
        """Stop serving a sandbox, and close what it has open. Nothing happens to an unknown one."""
        if (attached := self._attached.pop(sandbox_id, None)) is None:
            return
        assert attached.accepting is not None
        tasks = [attached.accepting, *attached.serving]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        attached.listener.close()

    async def aclose(self) -> None:
        """Stop serving all."""
        for sandbox_id in list(self._attached):
            await self.detach(sandbox_id)

    async def _accept(self, attached: _Attached) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(attached.listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    logger.error("sandbox %s has no way out any more: %s", attached.proxy.sandbox_id, error)
                    return
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            connection.setblocking(False)
            task = asyncio.create_task(self._serve(attached, connection))
            attached.serving.add(task)
            task.add_done_callback(attached.serving.discard)

    async def _serve(self, attached: _Attached, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, stream = await loop.connect_accepted_socket(Stream, connection)
        except BaseException:
            connection.close()
            raise
        try:
            if len(attached.serving) > MAX_SANDBOX_CONNECTIONS:
                await _turn_away(stream)
            else:
                await ProxyConnection(stream, attached.proxy).serve()
        except Exception:
            logger.exception("a connection of sandbox %s failed", attached.proxy.sandbox_id)
        finally:
            stream.abort()


async def _turn_away(stream: Stream) -> None:
    error = ApiError(503, "EgressBusy", f"a sandbox has at most {MAX_SANDBOX_CONNECTIONS} connections to its proxy")
    fields: list[Any] = [*error.headers(), (b"connection", b"close")]
    lines = b"".join(b"%s: %s\r\n" % field for field in fields)
    stream.write(b"HTTP/1.1 503 Service Unavailable\r\n" + lines + b"\r\n" + error.body())
    await stream.close_gently()
