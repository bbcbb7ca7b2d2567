"""From a host that a sandbox asks for to a connection, or a refusal.

A name is resolved once, here, and what is connected to is the address that was judged: a name that stands for another
address a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from ..streams import Stream
from .policy import OperatorPolicy, Refused

if TYPE_CHECKING:
    from .addresses import Address
    from .policy import AccessControl

__all__ = ["Connected", "Dialer", "Resolve", "Unreachable", "resolve"]

LOOKUP_TIMEOUT: Final = 10.0
"""Seconds that a name may take to be resolved."""
MAX_LOOKUPS: Final = 16
"""Names that are being resolved at once, of all sandboxes: each takes a thread."""
MAX_ADDRESSES: Final = 8
"""Addresses of a name that are tried, one after the other."""
DIAL_TIMEOUT: Final = 10.0
"""Seconds that a connection to one address may take, TLS included."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class Unreachable(Exception):
    """The host cannot be resolved or connected to; the message says which."""


async def resolve(host: str) -> Sequence[str]:
    """The addresses of a name, as this machine resolves it. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


@attrs.frozen
class Connected:
    """A connection, and the rule that allowed it."""

    stream: Stream
    rule: str


class Dialer:
    """Resolves, judges and connects, for all sandboxes."""

    def __init__(self, policy: OperatorPolicy, resolve: Resolve = resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)

    async def judge(self, host: str, port: int, own: AccessControl) -> tuple[list[Address], str]:
        """Addresses that may be connected to, at least one, and by which rule.

        Raises Refused; Unreachable if the name does not resolve.
        """
        verdict = self._policy.judge_name(host, port, own)
        refusal: Refused | None = None
        allowed: list[Address] = []
        rule = verdict.rule
        for address in await self._addresses(host):
            try:
                rule = self._policy.judge_address(host, port, address, own, verdict)
                allowed.append(address)
            except Refused as refused:
                refusal = refusal or refused
        if not allowed:
            raise refusal or Unreachable(f"{host} has no address")
        return allowed[:MAX_ADDRESSES], rule

    async def connect(self, host: str, port: int, own: AccessControl, *, tls: ssl.SSLContext | None) -> Connected:
        """Connect to the first address that answers. `tls`: speak TLS, and demand the host's certificate.

        Raises Refused, Unreachable. Cancellation: nothing is left open.
        """
        addresses, rule = await self.judge(host, port, own)
        loop = asyncio.get_running_loop()
        reason = ""
        for address in addresses:
            try:
                async with asyncio.timeout(DIAL_TIMEOUT):
                    _, stream = await loop.create_connection(
                        Stream, str(address), port, ssl=tls, server_hostname=host if tls is not None else None
                    )
                return Connected(stream, rule)
            except TimeoutError:
                reason = f"no answer within {DIAL_TIMEOUT:g} s"
            except ssl.SSLCertVerificationError as error:
                reason = f"its certificate is not valid: {error.verify_message}"
            except OSError as error:
                reason = error.strerror or type(error).__name__
        raise Unreachable(f"cannot connect to {host}:{port}: {reason}")

    async def _addresses(self, host: str) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            async with self._lookups, asyncio.timeout(LOOKUP_TIMEOUT):
                found = await self._resolve(host)
            return [ipaddress.ip_address(text.partition("%")[0]) for text in found]
        except TimeoutError:
            raise Unreachable(f"cannot resolve {host}: no answer within {LOOKUP_TIMEOUT:g} s") from None
        except (OSError, ValueError) as error:
            raise Unreachable(f"cannot resolve {host}: {error}") from None
