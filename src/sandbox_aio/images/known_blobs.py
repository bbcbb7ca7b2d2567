"""Which blobs a layer is in registries: as it came from one, or as it was pushed to one.

    <layers>/17/blobs.json

With that, a push packs nothing that the registry has, and an image keeps the layers it was pulled with.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from pathlib import Path

    from .manifest import Descriptor

__all__ = ["KnownBlob", "known_blobs", "remember"]

MAX_BLOBS: Final = 4
"""Of one layer; the newest."""
MAX_PLACES: Final = 8
"""Where one blob is known to be; the newest."""
_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_MEDIA_TYPES: Final = {
    _GZIP: _GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": _GZIP,
    "application/vnd.oci.image.layer.v1.tar+zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.v1.tar": "application/vnd.oci.image.layer.v1.tar",
}
"""What the media type of a layer is in an OCI manifest."""


@attrs.frozen(kw_only=True)
class KnownBlob:
    """A blob that was verified to be a layer."""

    digest: str
    size: int
    media_type: str
    diff_id: str
    places: tuple[str, ...] = ()
    """`registry/repository` of where it is, or was."""

    @classmethod
    def of(cls, descriptor: Descriptor, diff_id: str, place: str) -> KnownBlob | None:
        """The blob that a manifest describes; None: of a kind that another manifest could not name."""
        media_type = _MEDIA_TYPES.get(descriptor.media_type)
        if media_type is None:
            return None
        return cls(
            digest=descriptor.digest, size=descriptor.size, media_type=media_type, diff_id=diff_id, places=(place,)
        )

    @property
    def descriptor(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def known_blobs(layer: Path) -> list[KnownBlob]:
    """What is known of the layer in that directory, the newest first. Blocks."""
    try:
        found = json.loads((layer / "blobs.json").read_text())
        return [KnownBlob(**{**blob, "places": tuple(blob["places"])}) for blob in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # It only costs time not to know.


def remember(layer: Path, blob: KnownBlob) -> None:
    """Write down what is known now. Blocks. Raises OSError; FileNotFoundError when the layer is gone."""
    others = []
    for known in known_blobs(layer):
        if known.digest == blob.digest:
            places = dict.fromkeys((*blob.places, *known.places))
            blob = attrs.evolve(blob, places=tuple(places)[:MAX_PLACES])
        else:
            others.append(known)
    draft = layer / f"blobs-{secrets.token_hex(4)}"
    draft.write_text(json.dumps([attrs.asdict(known) for known in (blob, *others)[:MAX_BLOBS]]))
    draft.rename(layer / "blobs.json")
