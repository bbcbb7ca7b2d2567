"""Which headers cross between a program in a sandbox and the host that it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from ..relay import WEBSOCKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ..exchange import Head, Headers
    from .config import Injection

__all__ = ["Crossing"]

HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"upgrade",
    )
)
FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
NOT_FROM_ORIGIN: Final = frozenset((b"alt-svc",))
"""What would lead the client past this proxy."""


@attrs.frozen(kw_only=True)
class Crossing:
    """One exchange with one host; a `relay.Policy`."""

    host: str
    port: int
    scheme: str

    @property
    def peer(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def transparent(self) -> bool:
        return True

    def matchable(self, head: Head) -> Mapping[str, Sequence[str]]:
        """The headers that the client sent, as rules look at them."""
        found: dict[str, list[str]] = {}
        for name, value in head.headers:
            found.setdefault(name.decode("ascii"), []).append(value.decode("latin-1"))
        return found

    def request(self, head: Head, injected: Iterable[Injection]) -> list[tuple[bytes, bytes]]:
        """The headers for the host: the client's own, with those that are injected in the place of their namesakes.

        `Host` is where the request really goes, whatever the client says: a rule's header never goes astray behind a
        shared address.
        """
        added = [(header.name.encode("ascii"), header.value.encode("latin-1")) for header in injected]
        replaced = {b"host", *(name.lower() for name, _ in added)}
        shown = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        host = shown if self.port == default else f"{shown}:{self.port}"
        ending = WEBSOCKET if head.wants_websocket else ((b"connection", b"close"),)
        own = (item for item in _end_to_end(head.headers) if item[0] not in replaced)
        return [(b"host", host.encode("ascii")), *own, *added, *ending]

    def request_trailers(self, trailers: Headers) -> Headers:
        return ()

    def answer(self, status: int, headers: Headers) -> Headers:
        return [item for item in _end_to_end(headers) if item[0] not in NOT_FROM_ORIGIN | {b"transfer-encoding"}]

    def interim(self, headers: Headers) -> Headers:
        return [item for item in _end_to_end(headers) if item[0] not in NOT_FROM_ORIGIN | FRAMING]

    def answer_trailers(self, trailers: Headers) -> Headers:
        return [item for item in _end_to_end(trailers) if item[0] not in FRAMING]


def _end_to_end(headers: Headers) -> Iterator[tuple[bytes, bytes]]:
    """Without what speaks of the connection, be it by its name or because `Connection` says so."""
    fields = list(headers)
    options = {
        option.strip().lower() for name, value in fields if name == b"connection" for option in value.split(b",")
    } - FRAMING
    return (item for item in fields if item[0] not in HOP_BY_HOP and item[0] not in options)
