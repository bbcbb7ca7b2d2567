"""Hosts as clients write them, and which addresses are out in the open."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

__all__ = ["Address", "Authority", "HostError", "is_own", "is_public", "parse_authority", "parse_host", "parse_port"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOST: Final = 253
"""Characters of a name: what the DNS has room for."""

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # the metadata server of one cloud, although its number is a public one
        "192.0.0.0/24",  # protocols' own, and the metadata server of another
        "192.88.99.0/24",  # relays between the two kinds of addresses
        "2001::/23",  # Teredo, which embeds an address of either side, and other protocols' own
        "2001:db8::/32",
        "3fff::/20",
    )
)
"""What `ipaddress` takes for global, or took in some version, and is not a host of the internet."""


class HostError(ValueError):
    """What a client wrote is not a host, or not a host and port; the message says why."""


Authority = tuple[str, int]
"""A host, as `parse_host` gives it, and a port."""


def parse_host(text: str) -> str:
    """A host in the one spelling that rules are compared with: a name in lower case without the last dot, or an address
    without brackets.

    Numbers that only some programs take for an address (`2130706433`, `0x7f.1`, `127.1`, `010.0.0.1`) are no hosts.
    Raises HostError.
    """
    if text.startswith("[") and text.endswith("]"):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
            if address.scope_id is not None:
                raise ValueError("an interface of this machine is nobody else's business")
            return str(address)
        except ValueError:
            raise HostError(f"{text[:MAX_HOST]!r} is not an address") from None
    host = text.lower().removesuffix(".")
    if not host or len(host) > MAX_HOST:
        raise HostError(f"a host has 1 to {MAX_HOST} characters")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise HostError(f"{host!r} is a number but not an address: four decimal numbers and three dots") from None
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise HostError(f"{host!r} is not a host name: letters, digits, '-' and '.'; other scripts as xn--")
    return host


def parse_port(text: str) -> int:
    """A port, 1 to 65535, in plain decimal digits. Raises HostError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise HostError(f"{text[:8]!r} is not a port: 1 to 65535")
    return int(text)


def parse_authority(text: str, *, default_port: int | None = None) -> Authority:
    """`host:port`; the port may be left out if there is a default. Raises HostError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        if default_port is None:
            raise HostError("the port is missing")
        return parse_host(text), default_port
    if ":" in host and not host.startswith("["):
        raise HostError("an IPv6 address is written in brackets")
    return parse_host(host), parse_port(port)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet's. One that embeds another is judged by that one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _MAPPED or address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None:
            return is_public(address.sixtofour)
        if address not in _UNICAST:
            return False
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    return not any(address.version == network.version and address in network for network in _REFUSED)


def is_own(address: Address) -> bool:
    """Whether an address is one of this machine's: whoever is reached there would take us for a neighbour.

    Asks the routing table; nothing is sent.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]) == address
        except OSError:
            return False
