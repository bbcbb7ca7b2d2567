"""One connection of a program in a sandbox to its proxy: requests in absolute form, or one tunnel (RFC 9110, 9.3.6).

Of a tunnel the bytes pass as they are, unless a rule of the sandbox adds headers to requests to that host: then both
ends of TLS are here, and what is within are requests in origin form.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Final

import attrs
import h11

from ..errors import ApiError
from ..exchange import Exchange, Head
from ..hosts import Host
from ..limits import LINGER_TIMEOUT, MAX_HEAD
from ..relay import Relay
from ..request_reading import read_request
from ..streams import Stream
from . import tunnel
from .addresses import Authority, HostError, parse_authority
from .config import ProxyConfig
from .crossing import Crossing
from .dialing import Dialer, Unreachable
from .intercept import CertificateAuthority
from .policy import Refused
from .request_log import RequestRecord

__all__ = ["ProxyConnection", "SandboxProxy"]

ABSOLUTE: Final = re.compile(rb"http://([^/?#]*)([^#]*)", re.IGNORECASE)
TLS_TIMEOUT: Final = 10.0
"""Seconds that a client in a sandbox may take to begin TLS."""


@attrs.define(kw_only=True)
class SandboxProxy:
    """What all connections of one sandbox have in common. `config` may be replaced at any time."""

    sandbox_id: str
    config: ProxyConfig
    dialer: Dialer
    authority: CertificateAuthority
    tls: ssl.SSLContext
    """How origins are spoken to."""


class ProxyConnection:
    """Serves one connection. `within`: the host and port to which the client has opened the tunnel that this is in."""

    def __init__(self, stream: Stream, proxy: SandboxProxy, within: Authority | None = None) -> None:
        self._stream = stream
        self._proxy = proxy
        self._within = within
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    async def serve(self) -> None:
        """Serve until the connection ends; closes it. When the client leaves in the middle, what was begun ends."""
        stream = self._stream
        try:
            while (request := await self._next_request()) is not None:
                if request.method == b"CONNECT" and self._within is None:
                    await self._tunnel(request)
                    return
                if not await self._answer(request):
                    break
                self._h11.start_next_cycle()
            await stream.close_gently()
        except (OSError, h11.ProtocolError):
            stream.abort()
        finally:
            stream.on_gone = None
            stream.close()

    async def _next_request(self) -> h11.Request | None:
        """The next request's head; None when there is none, the reason already told to the client."""
        try:
            return await read_request(self._h11, self._stream)
        except ApiError as error:
            if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._refuse(error)
        return None

    async def _refuse(self, error: ApiError) -> None:
        headers = [*error.headers(), (b"connection", b"close")]
        head = self._h11.send(h11.Response(status_code=error.status, headers=headers)) or b""
        await self._stream.send(head, error.body())

    # A tunnel.

    async def _tunnel(self, request: h11.Request) -> None:
        proxy = self._proxy
        record = RequestRecord(sandbox_id=proxy.sandbox_id, method="CONNECT")
        origin: Stream | None = None
        try:
            host, port = record.host, record.port = _authority(request.target, None)
            with _ends_with(self._stream):
                if proxy.config.intercepts(host, port):
                    _, record.rule = await proxy.dialer.judge(host, port, proxy.config.access)
                else:
                    connected = await proxy.dialer.connect(host, port, proxy.config.access, tls=None)
                    origin, record.rule = connected.stream, connected.rule
            record.verdict = "allowed"
            first = self._h11.trailing_data[0]
            if origin is not None:
                self._stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await tunnel.join(self._stream, origin, first, record)
            else:
                record.rule += " (intercepted)"
                await self._intercept(host, port, first)
        except (ApiError, Refused, Unreachable) as problem:
            await self._refuse(_explained(problem, record))
            await self._stream.close_gently()
        finally:
            if origin is not None:
                origin.close()
            record.write()

    async def _intercept(self, host: str, port: int, first: bytes) -> None:
        """Be the host, and serve the requests that come; `first` is what the client has sent too early."""
        context = await asyncio.to_thread(self._proxy.authority.context, host)
        outer, inner = self._stream.transport, _Within()
        if first or self._stream.take_over(self._stream):
            raise ConnectionAbortedError("the client did not wait for the answer to CONNECT")
        self._stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        transport = await asyncio.get_running_loop().start_tls(
            outer, inner, context, server_side=True, ssl_handshake_timeout=TLS_TIMEOUT
        )
        if transport is None:
            raise ConnectionAbortedError("the client left")
        inner.connection_made(transport)
        try:
            await ProxyConnection(inner, self._proxy, (host, port)).serve()
            async with asyncio.timeout(LINGER_TIMEOUT):
                await inner.over.wait()  # What is encrypted already may still be on its way.
        finally:
            transport.abort()

    # A request.

    async def _answer(self, request: h11.Request) -> bool:
        """Whether the connection can go on."""
        record = RequestRecord(sandbox_id=self._proxy.sandbox_id, method=request.method.decode("ascii"))
        try:
            head, authority = self._head(request)
        except ApiError as error:
            await self._refuse(_explained(error, record))
            record.write()
            return False
        exchange = _CountedExchange(self._h11, self._stream, head, record, scheme="http")
        record.host, record.port = authority
        try:
            with _ends_with(self._stream):
                await self._forward(exchange, authority, record)
        except (ApiError, Refused, Unreachable) as problem:
            answer = _explained(problem, record)
            if exchange.answered:
                raise ConnectionAbortedError(str(answer)) from problem  # Too late for another answer.
            await exchange.respond(answer.status, answer.headers(), answer.body())
        finally:
            record.write()
        return (
            not exchange.upgraded and self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        )  # Else there is something left of the request, or the client wants no more.

    async def _forward(self, exchange: _CountedExchange, authority: Authority, record: RequestRecord) -> None:
        proxy, head, (host, port) = self._proxy, exchange.head, authority
        scheme = "http" if self._within is None else "https"
        crossing = Crossing(host=host, port=port, scheme=scheme)
        seen = crossing.matchable(head)
        rule = proxy.config.rule_for(scheme, host, port, head.path.decode("latin-1"), seen)
        record.injected = rule.name if rule is not None else "-"
        tls = proxy.tls if scheme == "https" else None
        connected = await proxy.dialer.connect(host, port, proxy.config.access, tls=tls)
        record.verdict, record.rule = "allowed", connected.rule
        over = asyncio.Event()
        try:
            target = head.path + (b"?" + head.query if head.query else b"")
            headers = crossing.request(head, rule.headers if rule is not None else ())
            relay = Relay(exchange, connected.stream, crossing, lambda splice: over.set())
            if await relay.run(h11.Request(method=head.method, target=target, headers=headers)) is not None:
                await over.wait()
        finally:
            connected.stream.abort()

    def _head(self, request: h11.Request) -> tuple[Head, Authority]:
        """The request as its origin shall see it, and where that is. Raises ApiError 400 or 505."""
        headers = tuple(request.headers)
        names = [name for name, _ in headers]
        if request.http_version not in (b"1.0", b"1.1"):
            raise ApiError(505, "InvalidRequest", "this proxy speaks HTTP/1.1")
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
            raise ApiError(400, "InvalidRequest", "a request is framed by Content-Length or by chunks, not by both")
        target = request.target
        authority = self._within
        if authority is None:
            absolute = ABSOLUTE.fullmatch(target)
            if absolute is None:
                message = "this is a proxy: it takes 'GET http://host/path', and CONNECT for everything else"
                raise ApiError(400, "InvalidRequest", message)
            authority = _authority(absolute[1], 80)
            target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
        path, _, query = target.partition(b"?")
        if not path.startswith(b"/") or b"#" in target or request.method == b"CONNECT":
            raise ApiError(400, "InvalidRequest", "the request target is not a path")
        host = Host(authority[0], authority[1])
        return Head(
            method=request.method, path=path, query=query, headers=headers, host=host, version=request.http_version
        ), authority


class _Within(Stream):
    """What is within TLS. Says when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.over: asyncio.Event = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.over.set()


class _CountedExchange(Exchange):
    """Counts the bytes of both bodies."""

    def __init__(
        self, connection: h11.Connection, stream: Stream, head: Head, record: RequestRecord, *, scheme: str
    ) -> None:
        super().__init__(connection, stream, head, scheme=scheme)
        self._record = record

    async def receive_body(self) -> bytes | None:
        data = await super().receive_body()
        self._record.sent += len(data or b"")
        return data

    async def send_body(self, data: bytes) -> None:
        self._record.received += len(data)
        await super().send_body(data)


class _ends_with:
    """Cancels the task in which this is entered when the client goes away."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._stream.ended:
            raise ConnectionAbortedError("the client left")

        def gone() -> None:
            task.cancel()

        self._stream.on_gone = gone

    def __exit__(self, *_: object) -> None:
        self._stream.on_gone = None


def _authority(target: bytes, default_port: int | None) -> Authority:
    """Raises ApiError 400."""
    try:
        return parse_authority(target.decode("ascii"), default_port=default_port)
    except UnicodeDecodeError:
        raise ApiError(400, "InvalidRequest", "a host is ASCII") from None
    except HostError as error:
        raise ApiError(400, "InvalidRequest", str(error)) from None


def _explained(problem: ApiError | Refused | Unreachable, record: RequestRecord) -> ApiError:
    """The answer to a request that goes nowhere, noted in its record."""
    if isinstance(problem, Refused):
        record.verdict, record.rule = "refused", problem.rule
        return ApiError(403, "EgressDenied", str(problem))
    if isinstance(problem, Unreachable):
        record.verdict = "unreachable"
        return ApiError(502, "EgressFailed", str(problem))
    record.verdict = "invalid" if problem.status < 500 else "failed"
    return problem
