"""What came of a pull or an import."""

from __future__ import annotations

import attrs

from .manifest import ImageConfig

__all__ = ["Progress", "PulledImage"]


@attrs.frozen(kw_only=True)
class PulledImage:
    """An image whose layers are all in the store."""

    reference: str
    digest: str
    config: ImageConfig
    layers: tuple[str, ...]
    """Their ids, topmost first."""
    size_bytes: int
    """What their files hold."""
    notes: tuple[str, ...] = ()
    """What could not be unpacked as it is."""


@attrs.frozen(kw_only=True)
class Progress:
    """How far a pull or a push is."""

    layers_done: int
    layers_total: int
    bytes_done: int
    bytes_total: int
    """As far as it is known by now."""
    doing: str = "pulling"

    def __str__(self) -> str:
        done, total = self.bytes_done / 1e6, self.bytes_total / 1e6
        return f"{self.doing}: {self.layers_done} of {self.layers_total} layers, {done:.1f} of {total:.1f} MB"
