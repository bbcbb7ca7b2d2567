"""The `Host` of a request, and the hosts that belong to services. Wire protocol, section 6.2."""

from __future__ import annotations

import functools
import re
from typing import Final

import attrs

from .errors import ApiError

__all__ = ["Host", "ServiceHosts", "ServiceTarget"]

MAX_HOST: Final = 262
"""Bytes of a host and its port: a name has at most 255."""

AUTHORITY: Final = re.compile(rb"([A-Za-z0-9_](?:[A-Za-z0-9_.-]*)|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?")
UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PORT: Final = r"[1-9]\d{0,4}"


@attrs.frozen
class ServiceTarget:
    """A port of a sandbox."""

    sandbox_id: str
    port: int

    @classmethod
    def of(cls, sandbox_id: str, port: str) -> ServiceTarget | None:
        """From the texts in a host or a path, lower case; None if they are not a sandbox's id and a port."""
        if re.fullmatch(UUID, sandbox_id) and re.fullmatch(PORT, port) and int(port) <= 0xFFFF:
            return cls(sandbox_id, int(port))
        return None


@attrs.frozen
class Host:
    """What a client calls us."""

    name: str
    """Lower case, without a dot at its end; brackets are around an IPv6 address."""
    port: int | None

    @classmethod
    def parse(cls, value: bytes) -> Host:
        """From a `Host` header or the authority of a request target. Raises ApiError 400 if it is anything else."""
        if len(value) > MAX_HOST:
            raise ApiError(400, "InvalidRequest", f"the Host has more than {MAX_HOST} bytes")
        return _parse(value)

    def authority(self) -> str:
        """Name and port as a URL has them."""
        return self.name if self.port is None else f"{self.name}:{self.port}"

    def origin(self, scheme: str) -> str:
        """As browsers write it: without the scheme's own port."""
        default = 443 if scheme == "https" else 80
        return f"{scheme}://{self.name}" if self.port in (None, default) else f"{scheme}://{self.name}:{self.port}"


@functools.lru_cache(maxsize=1024)
def _parse(value: bytes) -> Host:
    match = AUTHORITY.fullmatch(value)
    if match is None or (match[2] is not None and not 0 < int(match[2]) <= 0xFFFF):
        raise ApiError(400, "InvalidRequest", "the Host is not a name and a port")
    name = match[1].decode("ascii").lower().removesuffix(".")
    if not name or ".." in name or name.endswith("."):
        raise ApiError(400, "InvalidRequest", "the Host has an empty label")
    return Host(name, int(match[2]) if match[2] is not None else None)


class ServiceHosts:
    """Tells `{sandbox_id}--{port}.{domain}` from every other host. A port of the domain is not looked at."""

    def __init__(self, domain: str) -> None:
        self._suffix = "." + domain.partition(":")[0].strip(".").lower()

    def find(self, host: Host) -> ServiceTarget | None:
        """The service that a host belongs to, None for one that is no service's.

        Raises ApiError 404 for a host that looks like one and cannot be: nothing else may be served there, since a
        page of a sandbox could have come from its neighbour.
        """
        if "--" not in host.name or not host.name.endswith(self._suffix):
            return None
        sandbox_id, _, port = host.name.removesuffix(self._suffix).partition("--")
        target = ServiceTarget.of(sandbox_id, port)
        if target is None:
            raise ApiError(404, "NotFound", f"{host.name} is not the host of a service: SANDBOX_ID--PORT{self._suffix}")

        return target
