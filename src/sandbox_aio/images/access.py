"""How registries are reached: what the operator of the server has set, and the credentials of one of them."""

from __future__ import annotations

import functools
import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path

import attrs

from .reference import DOCKER_HUB

__all__ = ["Credentials", "RegistryAccess"]


@attrs.frozen
class Credentials:
    """A name and a password (or token) for one registry."""

    username: str
    password: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class RegistryAccess:
    """The operator's settings.

    `mirrors`: for a registry, URLs that are asked before it. `insecure`: registries that speak plain HTTP; those on
    this machine's loopback do anyway. `ca_file`: certificates to trust beside the system's.
    """

    mirrors: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    insecure: frozenset[str] = frozenset()
    ca_file: Path | None = None

    def bases(self, registry: str) -> tuple[str, ...]:
        """The URLs below which a registry is asked, in this order; the last one is its own."""
        return (*(url.rstrip("/") for url in self.mirrors.get(registry, ())), self.own_base(registry))

    def own_base(self, registry: str) -> str:
        """The registry's own URL."""
        host = "registry-1.docker.io" if registry == DOCKER_HUB else registry
        return f"{'http' if self.is_insecure(registry) else 'https'}://{host}"

    def is_insecure(self, registry: str) -> bool:
        """Whether a registry is spoken to without TLS."""
        name = registry.rpartition(":")[0] if registry.rpartition(":")[2].isdigit() else registry
        if registry in self.insecure or name in self.insecure or name == "localhost":
            return self.ca_file is None or registry in self.insecure or name in self.insecure
        try:
            loopback = ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False
        return loopback and self.ca_file is None

    def tls(self) -> ssl.SSLContext:
        """What certificates are checked with. The file is read once. Raises OSError for one that cannot be."""
        return _context(self.ca_file)


@functools.lru_cache(4)
def _context(ca_file: Path | None) -> ssl.SSLContext:
    """Kept, because the system's certificates take tens of milliseconds to read."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
