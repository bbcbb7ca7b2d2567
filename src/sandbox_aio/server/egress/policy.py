"""Who may be reached: the operator's say, then the sandbox's own access control. Wire protocol, section 1.14."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final, Literal

import attrs

from .addresses import Address, HostError, is_own, is_public, parse_host, parse_port
from .patterns import Pattern, PatternError

__all__ = ["MAX_ENTRIES", "AccessControl", "Entry", "OperatorPolicy", "Refused", "Verdict", "parse_entry"]

MAX_ENTRIES: Final = 1024
"""Entries of one allow or deny list."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Entry:
    """One line of a list: what it says about hosts. `text` is how it was written."""

    text: str
    name: str | None = None
    """A name, with `*` for any characters."""
    network: Network | None = None
    """An address is a network of one."""
    pattern: Pattern | None = attrs.field(default=None, eq=False)
    port: int | None = None

    def covers_name(self, host: str, port: int) -> bool:
        """Whether it speaks of a host as it was asked for."""
        if self.port not in (None, port):
            return False
        if self.pattern is not None:
            return self.pattern.matches(host)
        return self.name is not None and _glob(self.name, host)

    def covers_address(self, address: Address, port: int) -> bool:
        """Whether it speaks of an address, be it asked for or what a name stands for."""
        network = self.network
        if network is None or self.port not in (None, port):
            return False
        return any(one.version == network.version and one in network for one in _both_spellings(address))


def parse_entry(text: str) -> Entry:
    """A domain, a glob, an address, a network, `~pattern`, or one of the first three with `:port`.

    A domain is itself and no subdomain; `*.example.com` is every subdomain and not the domain. Raises ValueError.
    """
    if text.startswith("~"):
        try:
            return Entry(text, pattern=Pattern(text[1:]))
        except PatternError as error:
            raise ValueError(f"{text!r}: {error}") from None
    try:
        if "/" in text:
            return Entry(text, network=ipaddress.ip_network(text))
        host, port = _split_port(text)
        if "*" in host:
            parse_host(host.lower().replace("*", "x"))  # Whatever the stars stand for, the rest must be a name's.
            return Entry(text, name=host.lower().removesuffix("."), port=port)
        host = parse_host(host)
        try:
            return Entry(text, network=ipaddress.ip_network(host), port=port)
        except ValueError:
            return Entry(text, name=host, port=port)
    except HostError as error:
        raise ValueError(f"{text!r}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network: {error}") from None


def _split_port(text: str) -> tuple[str, int | None]:
    if text.count(":") > 1 and not text.startswith("["):
        return f"[{text}]", None  # An IPv6 address without brackets, hence without a port.
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text, None
    return host, parse_port(port)


def _glob(pattern: str, host: str) -> bool:
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == host
    *middle, last = rest
    if not host.startswith(first) or not host.endswith(last):
        return False
    at, end = len(first), len(host) - len(last)
    for part in middle:
        found = host.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return at <= end


def _both_spellings(address: Address) -> tuple[Address, ...]:
    """An address, and the IPv4 address that it is another spelling of."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (address, mapped) if mapped is not None else (address,)


@attrs.frozen(kw_only=True)
class AccessControl:
    """A sandbox's own rules: who is on a list may be reached, or may not. None: everybody may."""

    mode: Literal["allow", "deny"] | None = None
    entries: Sequence[Entry] = ()


@attrs.frozen
class Verdict:
    """Whether, and by which rule. `unchecked`: the operator has vouched for the host, wherever it is."""

    allowed: bool
    rule: str
    unchecked: bool = False


class Refused(Exception):
    """A host is not to be reached; the message says by whose rule."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@attrs.frozen(kw_only=True)
class OperatorPolicy:
    """What the operator of the server decided. A sandbox's rules narrow it and never widen it."""

    open: bool = True
    """Whether public addresses may be reached at all."""
    allowed: Sequence[Entry] = ()
    """Hosts that may be reached wherever they are, and when nothing else may."""

    def judge_name(self, host: str, port: int, own: AccessControl) -> Verdict:
        """What can be said before the name is resolved: refused, or to be judged by its addresses.

        Raises Refused.
        """
        vouched = next((entry for entry in self.allowed if entry.covers_name(host, port)), None)
        literal = _literal(host)
        if vouched is None and literal is not None:
            vouched = next((entry for entry in self.allowed if entry.covers_address(literal, port)), None)
        if vouched is None and not self.open:
            raise Refused("operator:closed", f"this server lets no sandbox reach {host}:{port} (--egress closed)")
        listed = next((entry for entry in own.entries if entry.covers_name(host, port)), None)
        if own.mode == "deny" and listed is not None:
            raise Refused(f"deny:{listed.text}", f"{host}:{port} is on this sandbox's deny_list ({listed.text})")
        rule = f"operator:{vouched.text}" if vouched is not None else "open"
        if own.mode == "allow":
            if listed is None and not any(entry.network is not None for entry in own.entries):
                raise Refused("allow_list", f"{host}:{port} is not on this sandbox's allow_list")
            rule = f"allow:{listed.text}" if listed is not None else "allow_list"
        return Verdict(allowed=listed is not None or own.mode != "allow", rule=rule, unchecked=vouched is not None)

    def judge_address(self, host: str, port: int, address: Address, own: AccessControl, verdict: Verdict) -> str:
        """By which rule one of a name's addresses may be connected to. Raises Refused."""
        listed = next((entry for entry in own.entries if entry.covers_address(address, port)), None)
        if own.mode == "deny" and listed is not None:
            raise Refused(f"deny:{listed.text}", f"{host} is {address}, which is on this sandbox's deny_list")
        if not verdict.allowed and listed is None:
            raise Refused("allow_list", f"{host}:{port} is not on this sandbox's allow_list, nor is {address}")
        if not verdict.unchecked and (not is_public(address) or is_own(address)):
            raise Refused(
                "private-address",
                f"{host} is {address}, which is not a public address; the operator can allow it with "
                f"--egress-allow {host}",
            )
        return verdict.rule if listed is None else f"{own.mode}:{listed.text}"


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
