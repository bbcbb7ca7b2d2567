"""The reverse proxy to a port in a sandbox, on a host of its own or below `/svc`. Wire protocol, section 6.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import h11

from .errors import ApiError
from .forward import FindDaemon, connect_port
from .relay import Relay
from .service_access import OWN_PATHS, ServiceAccess
from .service_headers import Caller, ServiceForm
from .service_pages import refuse

if TYPE_CHECKING:
    from .exchange import Exchange
    from .hosts import ServiceTarget
    from .splice import Splice

__all__ = ["ServiceProxy"]

OnSpliceGone = Callable[["Splice"], None]


@attrs.frozen(kw_only=True)
class ServiceProxy:
    """Answers exchanges with what a program in a sandbox answers.

    `https` says that clients reach us by https although the connection to us is plain.
    """

    access: ServiceAccess
    find_daemon: FindDaemon
    is_own_key: Callable[[bytes], bool]
    https: bool = False

    async def serve_host(
        self, exchange: Exchange, target: ServiceTarget, on_splice_gone: OnSpliceGone
    ) -> Splice | None:
        """Answer on the service's own host, to a browser or a program. Return the splice if there is one.

        Refusals are a page for whoever accepts HTML, else JSON; none is raised before the answer has begun.
        """
        head = exchange.head
        scheme = self._scheme(exchange)
        form = self._form(exchange, target)
        try:
            if head.path.startswith(OWN_PATHS):
                await self.access.serve_own(exchange, target, scheme=scheme)
                return None
            grant = self.access.by_header(head, target) or self.access.by_cookie(head, target, scheme=scheme)
            form = attrs.evolve(form, embed_origins=grant.embed_origins)
            return await self._pass(exchange, target, head.path, form, on_splice_gone)
        except ApiError as error:
            await refuse(exchange, error, form.frame_ancestors())
            return None

    async def serve_path(
        self, exchange: Exchange, target: ServiceTarget, path: bytes, on_splice_gone: OnSpliceGone
    ) -> Splice | None:
        """Answer below `/svc`, to a program that bears a token. Return the splice if there is one."""
        prefix = b"/svc/%b/%d" % (target.sandbox_id.encode(), target.port)
        form = attrs.evolve(self._form(exchange, target), prefix=prefix)
        try:
            if self.access.by_header(exchange.head, target) is None:
                raise ApiError(401, "Unauthorized", "send the service's token in X-Langsmith-Sandbox-Service-Token")
            return await self._pass(exchange, target, path, form, on_splice_gone)
        except ApiError as error:
            await refuse(exchange, error, b"sandbox")
            return None

    async def _pass(
        self, exchange: Exchange, target: ServiceTarget, path: bytes, form: ServiceForm, on_splice_gone: OnSpliceGone
    ) -> Splice | None:
        head = exchange.head
        if head.method == b"TRACE":
            raise ApiError(405, "MethodNotAllowed", "TRACE is not passed on")
        websocket = head.wants_websocket and head.method == b"GET" and not head.has_body and head.version == b"1.1"
        request = h11.Request(
            method=head.method,
            target=path + b"?" + head.query if head.query else path,
            headers=form.request(head, websocket=websocket),
        )
        try:
            _, address = await self.find_daemon(target.sandbox_id)
        except ApiError as error:
            if error.error == "NotReady":
                raise ApiError(503, error.error, error.message) from error
            raise
        stream, received = await connect_port(address, target.port)
        spliced = None
        try:
            spliced = await Relay(exchange, stream, form, on_splice_gone, received).run(request)
            return spliced
        finally:
            if spliced is None:
                stream.abort()

    def _scheme(self, exchange: Exchange) -> str:
        return "https" if self.https else exchange.scheme

    def _form(self, exchange: Exchange, target: ServiceTarget) -> ServiceForm:
        host = exchange.head.host
        peer = exchange.stream.transport.get_extra_info("peername")
        caller = Caller(address=peer[0] if peer else "unknown", scheme=self._scheme(exchange), host=host.authority())
        return ServiceForm(port=target.port, caller=caller, is_own_key=self.is_own_key)
